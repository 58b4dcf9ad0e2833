"""The agent: runs a device's session over real parts.

`Agent` performs what `DeviceSession` asks for: computations in the torch thread, checkpoints in the
state folder, messages over the `Link`, timers on the event loop. It needs the broker only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

import structlog

from broker.protocol import messages as m
from broker.protocol.frames import CHUNK_BYTES
from device_agent.config import AgentConfig
from device_agent.job_source import JobSource
from device_agent.link.link import Connect, Link
from device_agent.link.metered import Metered
from device_agent.link.rate_limit import Pace
from device_agent.metrics import SessionWatch
from device_agent.observations import Evaluated, Observe, RoundEnded, StateChanged, StepTaken
from device_agent.policy.data_budget import Allowance
from device_agent.policy.run_conditions import Gate
from device_agent.session import events as e
from device_agent.session.machine import DeviceSession
from device_agent.setup import prepare
from device_agent.spans import StepSpans, traced
from device_agent.state_folder import StateFolder
from device_agent.training import effects
from device_agent.training.codec_policy import BySpeed, MakeChooser
from device_agent.training.trainer import DeviceTrainer
from spliteasy.errors import RemoteError, SplitEasyError, StateError
from spliteasy.observability.meter import SILENT, Meter
from spliteasy.observability.traces import Tracer
from spliteasy.runtime.torch_thread import Compute

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """The result of an agent's run. Its steps are those that train."""

    device: str
    step: int
    total_steps: int
    done: bool
    """False where it was stopped on request before the last step."""
    taken: int = 0
    """Steps that were taken in this run."""
    job: str = ""
    """The version that was trained, by its digest; empty where it was stopped before there was one."""
    newest: str | None = None
    """A newer version of the job, by its digest, where there is one."""


class Agent:
    """One device's training, from fetching its job to the last step."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        connect: Connect,
        compute: Compute,
        observe: Observe = lambda _: None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        meter: Meter = SILENT,
        gate: Gate | None = None,
        today: Callable[[], date] = date.today,
        make_chooser: MakeChooser = BySpeed,
        tracer: Tracer | None = None,
    ) -> None:
        """`gate` says when steps may begin; None: always. `tracer` takes a trace of each step."""
        self.config = config
        self._gate = gate
        self._today = today
        self._allowance: Allowance | None = None
        self.meter = meter
        self.session: DeviceSession | None = None
        self.trainer: DeviceTrainer | None = None
        self._compute = compute
        self._make_chooser = make_chooser
        self._tracer = tracer
        self._observe = observe
        self._clock = clock
        self._events: asyncio.Queue[e.Event] = asyncio.Queue()
        self.link = Link(
            connect,
            config.device,
            emit=self._events.put_nowait,
            patience_s=config.patience_s,
            give_up_s=config.give_up_s,
            rng=rng,
            clock=clock,
            meter=meter,
            pace=None if config.max_uplink is None else Pace(config.max_uplink, clock=clock),
        )
        self._timers: dict[e.Timer, asyncio.TimerHandle] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._step_began = 0.0
        self._steps_in_all = 0
        """Steps that train."""
        self._adopt: Callable[[], None] = lambda: None
        name = config.job.partition("@")[0]
        self._session_name = f"{name}.{config.device}"
        self._log = log.bind(job=name, session=self._session_name)

    async def run(self, stop: asyncio.Event) -> AgentResult:
        """Train until the last step, or until `stop` is set: then end the current step and checkpoint.

        Raises UserError, LinkError, RemoteError. Cancelling leaves the last checkpoint.
        """
        state = await self._open_state()
        try:
            if self.config.metered is not None:
                self._meter_traffic(self.config.metered, state)
            if self._gate is not None and not await self._may_begin(self._gate, stop):
                return self._not_begun(state)
            return await self._run_parts(state, stop)
        finally:
            if self._allowance is not None:
                self._allowance.close()
            state.close()

    async def _open_state(self) -> StateFolder:
        """Open the state folder. Where the agent is cancelled meanwhile it is closed again: nothing stops the
        thread that opens it. Raises StateError.
        """
        opening = asyncio.ensure_future(self._compute(lambda: StateFolder(self.config.state)))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(StateError):
                (await opening).close()
            raise

    def _meter_traffic(self, limit_bytes: int, state: StateFolder) -> None:
        """Count what is sent and received; the gate is closed where no more may be."""
        self._allowance = allowance = Allowance(
            limit_bytes, saved=state.traffic, save=state.save_traffic, today=self._today
        )
        self.link.metered = Metered(allowance, failed=self._fail, tell=self._tell)

        async def within() -> str | None:
            return allowance.why_not()

        self._gate = Gate(within) if self._gate is None else self._gate.also(within)

    def _fail(self, error: StateError) -> None:
        """End the training, not the link, because its state can't be written down."""
        self._events.put_nowait(e.Failed(error))

    async def _may_begin(self, gate: Gate, stop: asyncio.Event) -> bool:
        """Wait before anything is sent or fetched. False where `stop` came first."""
        opened = asyncio.create_task(gate.opened(self._tell))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({opened, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                opened.result()
            return opened.done()
        finally:
            opened.cancel()
            stopped.cancel()
            await asyncio.gather(opened, stopped, return_exceptions=True)

    async def _run_parts(self, state: StateFolder, stop: asyncio.Event) -> AgentResult:
        link = asyncio.create_task(self.link.run())
        watchers = [asyncio.create_task(self._watch(stop))]
        if self._gate is not None:
            watchers.append(asyncio.create_task(self._gate.watch(self._events.put_nowait)))
        body = asyncio.create_task(self._train(state))
        try:
            await asyncio.wait({link, body}, return_when=asyncio.FIRST_COMPLETED)
            if not body.done():
                link.result()
            return await body
        finally:
            for handle in self._timers.values():
                handle.cancel()
            tasks = (body, link, *watchers, *self._work)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._events.put_nowait(e.StopAsked())

    # getting ready

    def _not_begun(self, state: StateFolder) -> AgentResult:
        """Stopped before there was anything to stop: the state is as it was."""
        step = max(state.held(), default=0)
        return AgentResult(device=self.config.device, step=step, total_steps=0, done=False)

    async def _train(self, state: StateFolder) -> AgentResult:
        source = JobSource(
            self.config,
            self._session_name,
            link=self.link,
            events=self._events,
            compute=self._compute,
            tell=self._tell,
        )
        fetched = await source.get(state)
        if fetched is None:
            return self._not_begun(state)
        spec, self.link.shard = fetched.job.spec, fetched.shard
        self.link.chunk_bytes = self.config.chunk_bytes or min(spec.link.chunk_bytes, CHUNK_BYTES)
        prepared = await self._compute(
            lambda: prepare(
                self.config,
                fetched,
                state,
                session=self._session_name,
                link=self.link,
                make_chooser=self._make_chooser,
            )
        )
        plan = prepared.plan
        self.trainer, self._adopt = prepared.trainer, prepared.adopt
        self._steps_in_all = plan.trained(plan.total_steps)
        session = self.session = DeviceSession(plan, held=prepared.held)
        if self.link.is_up:
            session.handle(e.LinkUp())
        if self._gate is not None and self._gate.why is not None:
            session.handle(e.Hold(self._gate.why))
        return await self._loop(session, state)

    # the loop

    async def _loop(self, session: DeviceSession, state: StateFolder) -> AgentResult:
        watches: list[Callable[[e.Event | None, list[e.Action]], None]] = [
            SessionWatch(session, self.meter, self._clock)
        ]
        if self._tracer is not None:
            watches.append(StepSpans(session, self._tracer))
        actions = session.start()
        for watch in watches:
            watch(None, actions)
        while True:
            for action in actions:
                match action:
                    case e.Finish(done=done):
                        step = session.plan.trained(session.step)
                        self._tell("done" if done else f"stopped after step {step}")
                        return AgentResult(
                            device=self.config.device,
                            step=step,
                            total_steps=session.plan.trained(session.plan.total_steps),
                            done=done,
                            taken=session.taken,
                            job=session.plan.digest,
                            newest=session.newest,
                        )
                    case e.Fail(error=error):
                        raise await self._with_its_cause(error)
                    case _:
                        self._perform(action, state)
            event = await self._events.get()
            if isinstance(event, e.Failed):
                raise event.error
            if isinstance(event, e.Received):
                self._follow(event.message)
            if self._allowance is not None and self._gate is not None:
                self._keep_within(self._allowance, self._gate, session, event)
            actions = session.handle(event)
            for watch in watches:
                watch(event, actions)

    def _follow(self, message: m.AnyMessage) -> None:
        """Send to the shard that serves the session, as a worker says."""
        if isinstance(message, m.Opened | m.Reopen) and message.session == self._session_name:
            self.link.shard = self.link.shard if message.shard is None else message.shard

    async def _with_its_cause(self, error: SplitEasyError) -> SplitEasyError:
        """A worker that finds a number not finite can't see the data: look whether that is to blame."""
        trainer = self.trainer
        if trainer is None or not isinstance(error, RemoteError) or error.code != "not-finite":
            return error
        return await self._compute(trainer.data_problem) or error

    def _keep_within(self, allowance: Allowance, gate: Gate, session: DeviceSession, event: e.Event) -> None:
        """Hold the session where the next step would not fit: it is looked at before each one begins."""
        if not isinstance(event, e.Applied | e.Restored | e.Saved | e.EvalTailDone):
            return
        allowance.between_steps(after_one=isinstance(event, e.Applied))
        if gate.why is None and (why := allowance.why_not()) is not None:
            gate.said(why)
            session.handle(e.Hold(why))

    def _perform(self, action: e.Action, state: StateFolder) -> None:
        match action:
            case e.Send(message=message, skip=skip, whole=whole):
                trace = traced if self._tracer is not None else _untraced
                self.link.send(trace(message), skip, whole and trace(whole))
            case e.Arm(timer=timer, delay_s=delay_s):
                self._disarm(timer)
                self._timers[timer] = asyncio.get_running_loop().call_later(
                    delay_s, self._events.put_nowait, e.Fired(timer)
                )
            case e.Disarm(timer=timer):
                self._disarm(timer)
            case e.Note(text=text):
                self._tell(text)
            case _:
                task = asyncio.create_task(self._run(action, state))
                self._work.add(task)
                task.add_done_callback(self._work.discard)

    def _disarm(self, timer: e.Timer) -> None:
        handle = self._timers.pop(timer, None)
        if handle is not None:
            handle.cancel()

    async def _run(self, action: e.Action, state: StateFolder) -> None:
        """Compute in the torch thread; the result, or the failure, comes back as an event."""
        if isinstance(action, e.RunHead) and action.micro == 0:
            self._step_began = self._clock()
        trainer = self.trainer
        assert trainer is not None
        try:
            if isinstance(action, e.Restore):
                await self._compute(self._adopt)
            event: e.Event = await self._compute(lambda: effects.perform(action, trainer, state))
            self._report(action)
        except Exception as error:
            event = e.Failed(error)
        self._events.put_nowait(event)
        if isinstance(action, e.RunTail if trainer.tail else e.RunHead):
            await self._compute(trainer.work_ahead)  # while the worker works

    # telling

    def _report(self, action: e.Action) -> None:
        trainer, device = self.trainer, self.config.device
        assert trainer is not None
        match action:
            case e.Restore(step=step):
                self._tell(f"resumed after step {trainer.taken}" if step else "training")
            case e.TakeMean(mean=mean):
                self._observe(
                    RoundEnded(device=device, round=mean.round, record=mean.record, step=trainer.taken)
                )
            case e.Apply(skipped=True):
                self._tell(f"step {trainer.taken} skipped, not finite: {trainer.passed}")
            case e.Apply():
                step = trainer.taken
                self._log.debug("step taken", step=step, bytes_up=self.link.bytes_up)
                self._observe(
                    StepTaken(
                        device=device,
                        step=step,
                        total_steps=self._steps_in_all,
                        epoch=trainer.batches.epoch(step),
                        loss=trainer.loss,
                        samples=trainer.samples,
                        seconds=self._clock() - self._step_began,
                        bytes_up=self.link.bytes_up,
                        bytes_down=self.link.bytes_down,
                    )
                )
            case e.EvalTail(index=index) if index + 1 == len(trainer.evaluator.tests or ()):
                done = trainer.evaluator.result
                self._observe(
                    Evaluated(
                        device=device,
                        step=trainer.taken,
                        samples=done.samples,
                        loss=done.mean_loss,
                        accuracy=done.accuracy,
                        metrics=done.metrics,
                    )
                )
                if (best := trainer.evaluator.best) is not None and best.finished:
                    self._tell(best.why())
            case e.GoBack() if (best := trainer.evaluator.best) is not None:
                self._tell(f"going back: {best.about()}")

    def _tell(self, text: str) -> None:
        self._log.info(text)
        self._observe(StateChanged(device=self.config.device, text=text))


def _untraced(request: m.Request) -> m.Request:
    return request
