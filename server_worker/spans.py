"""Traces of a worker's requests, under the device's step: wait, service with each phase, and reply."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from broker.protocol import messages as m
from server_worker.action import Action
from server_worker.engine.base import EngineRequest, Together
from server_worker.replica.actions import LoadJob
from server_worker.store.calls import Finish, StoreAction
from spliteasy.observability.traces import Span, Tracer, parse_traceparent

T = TypeVar("T")
_PHASES: dict[type[Action[Any]], str] = {Finish: "write the log", LoadJob: "load the job"}


class RequestSpans:
    """The spans of one request, from when it is its turn."""

    def __init__(
        self, tracer: Tracer, request: m.AnyRequest, *, waited_s: float, clock_ns: Callable[[], int]
    ) -> None:
        """Raises ValueError where the request is of no trace."""
        step = parse_traceparent(getattr(request, "traceparent", None))
        if step is None:
            raise ValueError("no trace")
        self._tracer = tracer
        self._clock_ns = clock_ns
        self._attributes = {"spliteasy.session": request.session}
        self._kind = request.kind
        self._step, self._own = step, step.child()
        self._began_ns = clock_ns()
        self._record("wait", self._began_ns - round(waited_s * 1e9))

    async def timed(self, action: Action[Any], work: Awaitable[T]) -> T:
        """Await the work of an action, and return its result."""
        name, began_ns = _phase(action), self._clock_ns()
        try:
            return await work
        finally:
            if name is not None:
                self._record(name, began_ns)

    def replied(self, kind: str, began_ns: int) -> None:
        """A reply has left."""
        self._record(f"send {kind}", began_ns)

    def served(self) -> None:
        """The request's turn is over."""
        self._tracer.record(
            Span(
                name=self._kind,
                context=self._own,
                parent=self._step.span,
                began_ns=self._began_ns,
                ended_ns=self._clock_ns(),
                attributes=self._attributes,
            )
        )

    def now_ns(self) -> int:
        return self._clock_ns()

    def _record(self, name: str, began_ns: int) -> None:
        self._tracer.record(
            Span(
                name=name,
                context=self._own.child(),
                parent=self._own.span,
                began_ns=began_ns,
                ended_ns=self._clock_ns(),
                attributes=self._attributes,
            )
        )


def spans_of(tracer: Tracer | None, request: m.AnyRequest, *, waited_s: float) -> RequestSpans | None:
    """None where nobody listens, or the device has named no trace."""
    if tracer is None or getattr(request, "traceparent", None) is None:
        return None
    try:
        return RequestSpans(tracer, request, waited_s=waited_s, clock_ns=time.time_ns)
    except ValueError:
        return None


def _phase(action: Action[Any]) -> str | None:
    """Return the name of an action's span; None for what takes no time."""
    match action:
        case Together(requests):
            return "compute " + ", ".join(type(each).__name__ for each in requests)
        case EngineRequest():
            return f"compute {type(action).__name__}"
        case StoreAction():
            return f"store {type(action).__name__}"
    return _PHASES.get(type(action))
