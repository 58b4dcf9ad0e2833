"""Where torch runs: one thread of its own, so that an event loop beside it stays alive.

A simulation gives another `Compute` that runs at once, under a virtual clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Compute(Protocol):
    """Runs a computation and gives its result; what it raises comes out of the await."""

    async def __call__(self, run: Callable[[], T]) -> T: ...


class TorchThread:
    """Runs computations one at a time, in order of arrival, in a thread of its own.

    A cancelled call does not stop a computation that has begun; its result is thrown away.
    """

    def __init__(self, name: str = "torch") -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def __call__(self, run: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, _guarded, run)

    def close(self) -> None:
        """Wait for the computation at hand, drop those waiting."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _guarded(run: Callable[[], Any]) -> Any:
    """A StopIteration can't travel through a future; nothing of ours raises it on purpose."""
    try:
        return run()
    except StopIteration as error:
        raise RuntimeError(f"a computation raised {error!r}") from error
