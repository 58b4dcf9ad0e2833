"""Actions are what a machine without I/O asks of its shell: records that say all that is needed.

A machine is a generator. It asks by `result = yield from SomeAction(...)`: the action travels to the shell,
which performs it and sends the result back. So a test can read what a machine does, a span can name it, and
an engine can gather it; and the result has the type that the action names.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R", covariant=True)


class Action(Generic[R]):
    """One thing to be done; `R` is the type of its result."""

    __slots__ = ()

    def __iter__(self) -> Generator[Action[Any], Any, R]:
        result: R = yield self
        return result


Steps = Generator[Action[Any], Any, T]
"""A machine's handler, whose result is a `T`."""
