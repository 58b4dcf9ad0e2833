"""What a session asks its shell to do. The shell sends each action's result back into the generator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any

from broker.protocol import messages as m
from server_worker.store import Store

Result = Any
"""An action's result; its type is the action's own, which a generator can't express."""

Handle = Awaitable[Any]
"""A store call under way."""


@dataclass(frozen=True, slots=True)
class Compute:
    """Run in the torch thread; the result is what `run` returns."""

    run: Callable[[], Result]


@dataclass(frozen=True, slots=True)
class StoreCall:
    """Call the store; the result is the outcome."""

    call: Callable[[Store], Coroutine[Any, Any, Result]]


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a store call beside what follows; the result is a handle for `Finish`.

    It goes on to its end even if nobody finishes it.
    """

    call: Callable[[Store], Coroutine[Any, Any, Result]]


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for a call that was begun; the result is the outcome."""

    handle: Handle


@dataclass(frozen=True, slots=True)
class LoadJob:
    """The program of a job version; the result is a `Job`, or None where the store has none."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a reply to where the device listens now."""

    reply: m.Reply | m.Receipt


@dataclass(frozen=True, slots=True)
class Background:
    """Call the store without waiting; `done` gets the outcome, or None where it failed."""

    call: Callable[[Store], Coroutine[Any, Any, Result]]
    done: Callable[[Result | None], None]


@dataclass(frozen=True, slots=True)
class Committed:
    """Tell the world that a step was committed (metrics, durability clock)."""

    session: str
    step: int
    loss: float | None = None
    """Where the worker has computed it, or the device may and did report it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Tell the world that a session was taken over at `step`, after `replayed` steps of its log."""

    session: str
    step: int
    replayed: int
    unlike: str | None = None
    """Where another machine computed it, and the job tolerates that: which."""


Action = Compute | StoreCall | Begin | Finish | LoadJob | Send | Background | Committed | Loaded
Steps = Generator[Action, Result, None]
"""A handler without a result; `Generator[Action, Result, T]` is one with."""
