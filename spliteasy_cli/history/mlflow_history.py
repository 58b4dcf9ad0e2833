"""The history of a run in MLflow: an MLflow run for each device's training (extra `mlflow`).

The experiment is `spliteasy/JOB`, the run's name the device; an agent that goes on goes on in its run.
Metrics are those of the JSON lines. Where the server fails, the history there ends, not the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from device_agent.observations import Evaluated, Observation, RoundEnded, StateChanged, StepTaken
from spliteasy.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

log = structlog.get_logger(__name__)
BATCH = 50
"""Metrics sent at a time: each call is a round trip."""


class MlflowHistory:
    """Reports observations to MLflow while it is entered. Raises UserError where it can't be reached then."""

    def __init__(
        self,
        uri: str,
        job: str,
        digest: str = "",
        *,
        fresh: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`fresh`: in new runs, whatever there is of these devices and this version of the job."""
        self._fresh = fresh
        self._uri, self._job, self._digest, self._clock = uri, job, digest, clock
        self._client: MlflowClient | None = None
        self._experiment = ""
        self._runs: dict[str, str] = {}
        self._waiting: dict[str, list[Metric]] = {}

    def __enter__(self) -> MlflowHistory:
        try:
            from mlflow import MlflowClient
        except ImportError:
            raise UserError(
                "--mlflow needs the package mlflow", hint="pip install 'spliteasy[mlflow]'"
            ) from None
        try:
            client = MlflowClient(tracking_uri=self._uri)
            name = f"spliteasy/{self._job}"
            found = client.get_experiment_by_name(name)
            self._experiment = found.experiment_id if found else client.create_experiment(name)
        except Exception as error:  # its stores raise whatever they like
            raise UserError(f"no MLflow at {self._uri}: {_first_line(error)}", hint="--mlflow URI") from None
        self._client = client
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guarded(lambda client: self._end(client, "FINISHED" if kind is None else "FAILED"))
        self._client = None

    def __call__(self, observation: Observation) -> None:
        """Keep an observation; written some steps at a time, and at each evaluation."""
        self._guarded(lambda client: self._keep(client, observation))

    def _guarded(self, act: Callable[[MlflowClient], object]) -> None:
        if self._client is None:
            return
        try:
            act(self._client)
        except Exception as error:  # a history must not end a training
            self._client = None
            log.warning("the history in MLflow ends here", uri=self._uri, error=_first_line(error))

    def _keep(self, client: MlflowClient, observation: Observation) -> None:
        from mlflow.entities import Metric

        device, now_ms = observation.device, round(self._clock() * 1000)
        if device not in self._runs:
            self._runs[device] = self._run_of(client, device)
        waiting = self._waiting.setdefault(device, [])
        if isinstance(observation, StateChanged):
            client.set_tag(self._runs[device], "spliteasy.state", observation.text)
            return
        if isinstance(observation, RoundEnded):
            client.set_tag(self._runs[device], "spliteasy.round", str(observation.round))
            return
        for name, value in metrics_of(observation).items():
            if math.isfinite(value):
                waiting.append(Metric(name, value, now_ms, observation.step))
        if len(waiting) >= BATCH or isinstance(observation, Evaluated):
            self._flush(client, device)

    def _end(self, client: MlflowClient, status: str) -> None:
        for device, run in self._runs.items():
            self._flush(client, device)
            client.set_terminated(run, status)

    def _flush(self, client: MlflowClient, device: str) -> None:
        waiting = self._waiting.pop(device, [])
        if waiting:
            client.log_batch(self._runs[device], metrics=waiting)

    def _run_of(self, client: MlflowClient, device: str) -> str:
        """The run of this device that was begun last, or a new one."""
        tag = f"tags.`spliteasy.device` = '{device}' and tags.`spliteasy.training.digest` = '{self._digest}'"
        found = [] if self._fresh else client.search_runs([self._experiment], tag, max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {"spliteasy.device": device, "spliteasy.training.digest": self._digest}
        made = client.create_run(self._experiment, tags=tags, run_name=device)
        new_id: str = made.info.run_id
        return new_id


def metrics_of(observation: StepTaken | Evaluated) -> dict[str, float]:
    """Return the measured values for MLflow, under the names of the TensorBoard events."""
    match observation:
        case StepTaken() as taken:
            found = {
                "train/loss": taken.loss,
                "train/seconds": taken.seconds,
                "train/epoch": taken.epoch,
                "link/bytes_up": taken.bytes_up,
                "link/bytes_down": taken.bytes_down,
            }
        case Evaluated(loss=loss, accuracy=accuracy, metrics=metrics):
            found = {"test/loss": loss, "test/accuracy": accuracy}
            found |= {f"test/{name.replace(':', '/')}": value for name, value in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
