"""Traces of a device's steps: a span for each whole step, and in it one for each phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from broker.protocol import messages as m
from device_agent.session import events as e
from device_agent.session.machine import DeviceSession
from device_agent.session.states import State
from spliteasy.observability.traces import Context, Span, Tracer, step_context

_OF_A_STEP = frozenset({State.HEAD, State.FORWARDING, State.TAIL, State.BACKWARDING, State.APPLYING})


def traced(request: m.Request) -> m.Request:
    """The request with the trace of its step: the same each time it is sent."""
    if not isinstance(request, m.Forward | m.Recall | m.Backward | m.Ask):
        return request
    context = context_of(request.session, request.attempt, request.step)
    return request.model_copy(update={"traceparent": context.traceparent})


def context_of(session: str, attempt: m.AttemptRef, step: int) -> Context:
    return step_context(session, attempt.number, attempt.nonce, step)


class StepSpans:
    """Follows a session: call it with each event and the actions that it led to."""

    def __init__(
        self, session: DeviceSession, tracer: Tracer, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._session = session
        self._tracer = tracer
        self._clock_ns = clock_ns
        self._attempt: m.AttemptRef | None = None
        self._phase = (session.state, clock_ns(), 0)
        """The state, since when, and of which step."""
        self._began_ns = clock_ns()

    def __call__(self, event: e.Event | None, actions: Sequence[e.Action]) -> None:
        now = self._clock_ns()
        state, since, step = self._phase
        if self._session.state is not state:
            if state in _OF_A_STEP:
                self._record(state.name.lower(), step, since, now)
            self._phase = (self._session.state, now, self._session.step + 1)
        match event:
            case e.AttemptRaised(attempt=attempt):
                self._attempt = attempt
            case e.Applied():
                self._record("step", step, self._began_ns, now, root=True)
        if any(isinstance(action, e.RunHead) and action.micro == 0 for action in actions):
            self._began_ns = now

    def _record(self, name: str, step: int, began_ns: int, ended_ns: int, *, root: bool = False) -> None:
        assert self._attempt is not None
        session = self._session.plan.session
        whole = context_of(session, self._attempt, step)
        self._tracer.record(
            Span(
                name=name,
                context=whole if root else whole.child(),
                parent=None if root else whole.span,
                began_ns=began_ns,
                ended_ns=ended_ns,
                attributes={"spliteasy.session": session, "spliteasy.step": step},
            )
        )
