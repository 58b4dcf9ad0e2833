"""Turns what agents tell into `DeviceRun`s, and shows them."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from device_agent.observations import Evaluated, Observation, RoundEnded, StateChanged, StepTaken
from spliteasy_cli.history.report import DeviceRun, as_json

log = structlog.get_logger(__name__)
LOG_EVERY_S = 5.0

Tell = Callable[[DeviceRun, bool], None]
"""A function that is called after each change with the run, and whether the change is worth a line of its
own."""


class Watcher:
    """The observer of one or more agents."""

    def __init__(self, devices: list[str], tell: Tell) -> None:
        self.runs = {device: DeviceRun(device) for device in devices}
        self._tell = tell

    def __call__(self, observation: Observation) -> None:
        run = self.runs[observation.device]
        match observation:
            case StepTaken():
                self._step(run, observation)
                self._tell(run, observation.step == observation.total_steps)
            case Evaluated():
                run.evaluations.append((observation.step, observation.loss, observation.accuracy))
                if observation.metrics:
                    run.metrics[observation.step] = observation.metrics
                self._tell(run, True)
            case RoundEnded():
                run.round = observation.round
            case StateChanged(text=text):
                run.state = text
                self._tell(run, True)

    def _step(self, run: DeviceRun, taken: StepTaken) -> None:
        carried = taken.bytes_up + taken.bytes_down - run.bytes_up - run.bytes_down
        evaluated_since = run.evaluations and run.evaluations[-1][0] >= run.step
        if run.steps and not evaluated_since:
            run.step_bytes.append(carried)
        run.step, run.total_steps = taken.step, taken.total_steps
        run.steps += 1
        if taken.loss is not None:
            run.losses.append((taken.step, taken.loss))
        run.samples += taken.samples
        run.step_seconds += taken.seconds
        run.lately.append(taken.seconds)
        run.bytes_up, run.bytes_down = taken.bytes_up, taken.bytes_down


class LogLines:
    """Tells by the log: a line every few seconds, and for each evaluation. States the agent logs itself."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._state = ""

    def __call__(self, run: DeviceRun, notable: bool) -> None:
        now = time.monotonic()
        if run.state != self._state:
            self._state = run.state
            return
        if not notable and now - self._last < LOG_EVERY_S:
            return
        self._last = now
        log.info(
            "progress",
            device=run.device,
            state=run.state,
            step=run.step,
            total_steps=run.total_steps,
            loss=as_json(run.train_loss),
            accuracy=as_json(run.test_accuracy),
            samples_per_s=round(run.samples_per_s, 1),
            bytes_up=run.bytes_up,
            bytes_down=run.bytes_down,
            seconds_left=run.seconds_left and round(run.seconds_left),
            bytes_left=run.bytes_left and round(run.bytes_left),
        )
