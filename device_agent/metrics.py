"""The metrics of an agent: their declarations, and the observer that follows its session.

Nothing here knows who listens: Prometheus is an extra that only the command line loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import nan
from typing import Protocol

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.machine import DeviceSession
from spliteasy.observability.meter import Meter, Metric

STEPS = Metric(
    "spliteasy_agent_steps_total", "counter", "Training steps taken on both sides, skipped ones too."
)
SKIPPED = Metric(
    "spliteasy_agent_skipped_steps_total", "counter", "Steps without effect: a gradient was not finite."
)
STEP_SECONDS = Metric(
    "spliteasy_agent_step_seconds", "histogram", "One step, from its head to the applied gradient."
)
PHASE_SECONDS = Metric(
    "spliteasy_agent_phase_seconds",
    "histogram",
    "Time in each state of the session: head, forwarding (waiting), tail, backwarding, applying, saving, …",
    ("phase",),
)
BYTES = Metric(
    "spliteasy_agent_bytes_total",
    "counter",
    "Bytes of frames sent, and of whole replies received.",
    ("direction", "codec"),
)
CONNECTIONS = Metric(
    "spliteasy_agent_connections_total", "counter", "Connections made: all but the first are reconnects."
)
ASKS = Metric("spliteasy_agent_asks_total", "counter", "Times it asked what became of a request.")
HAVES = Metric(
    "spliteasy_agent_haves_total", "counter", "Times a worker had some frames of a request already."
)
BUSY = Metric("spliteasy_agent_busy_total", "counter", "Times a worker said: not now.")
ATTEMPTS = Metric("spliteasy_agent_attempts_total", "counter", "Attempts begun: all but the first go back.")
STEP = Metric("spliteasy_agent_step", "gauge", "The last step.")
TOTAL_STEPS = Metric("spliteasy_agent_total_steps", "gauge", "The training's steps.")
LOSS = Metric(
    "spliteasy_agent_loss", "gauge", "Training loss of the last step's batch; NaN where none was measured."
)
LINK_UP = Metric("spliteasy_agent_link_up", "gauge", "1 while there is a connection to the broker.")
CHECKPOINTS = Metric("spliteasy_agent_checkpoints", "gauge", "Checkpoints in the state folder.")
DOWNLOAD_BYTES = Metric(
    "spliteasy_agent_download_bytes", "gauge", "Bytes reserved for replies that have not arrived whole."
)

ALL = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class SessionWatch:
    """Follows a session: call it with each event and the actions that it led to."""

    def __init__(self, session: DeviceSession, meter: Meter, clock: Callable[[], float]) -> None:
        self._session = session
        self._meter = meter
        self._clock = clock
        self._state = session.state
        self._since = self._step_began = clock()

    def __call__(self, event: e.Event | None, actions: Sequence[e.Action]) -> None:
        """`event` is None where the session has just been started."""
        now, meter = self._clock(), self._meter
        if self._session.state is not self._state:
            meter.observe(PHASE_SECONDS, now - self._since, self._state.name.lower())
            self._state, self._since = self._session.state, now
        match event:
            case e.Applied():
                meter.add(STEPS)
                meter.observe(STEP_SECONDS, now - self._step_began)
            case e.Received(message=m.Have()):
                meter.add(HAVES)
            case e.Received(message=m.Busy()):
                meter.add(BUSY)
        for action in actions:
            match action:
                case e.RunHead(micro=0):
                    self._step_began = now
                case e.RaiseAttempt():
                    meter.add(ATTEMPTS)
                case e.Send(message=m.Ask()):
                    meter.add(ASKS)
                case e.Apply(skipped=True):
                    meter.add(SKIPPED)


class MeasuredLink(Protocol):
    """The part of a link that its gauges show."""

    @property
    def is_up(self) -> bool: ...
    @property
    def download_bytes(self) -> int: ...


class MeasuredTrainer(Protocol):
    """The part of a trainer that its gauges show."""

    @property
    def loss(self) -> float | None: ...


class MeasuredAgent(Protocol):
    """The part of an agent that its gauges show."""

    @property
    def meter(self) -> Meter: ...
    @property
    def link(self) -> MeasuredLink: ...
    @property
    def session(self) -> DeviceSession | None: ...
    @property
    def trainer(self) -> MeasuredTrainer | None: ...


async def measure(agent: MeasuredAgent) -> None:
    """Set the gauges of what is known by now."""
    meter, session, trainer = agent.meter, agent.session, agent.trainer
    meter.set(LINK_UP, agent.link.is_up)
    meter.set(DOWNLOAD_BYTES, agent.link.download_bytes)
    if session is not None:
        meter.set(STEP, session.step)
        meter.set(TOTAL_STEPS, session.plan.total_steps)
        meter.set(CHECKPOINTS, len(session.held))
    if trainer is not None:
        meter.set(LOSS, nan if trainer.loss is None else trainer.loss)


async def why_not_ready(agent: MeasuredAgent) -> str | None:
    """None while the link is up."""
    return None if agent.link.is_up else "not connected to the broker"
