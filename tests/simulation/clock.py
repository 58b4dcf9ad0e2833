"""An event loop whose time is virtual: it jumps to the next timer instead of waiting for it."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Stuck(AssertionError):
    """Nothing is left that could happen: every task waits for something that never comes."""


class VirtualLoop(asyncio.BaseEventLoop):
    """`time()` begins at 0 and moves only from timer to timer. No threads, no sockets.

    What asyncio's own loop does between two waits for the network, in the same order, is all there is.
    """

    _scheduled: list[asyncio.TimerHandle]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        """One turn: timers that are due join what is ready; what is ready now runs."""
        ready, timers = self._ready, self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0].cancelled():
            heapq.heappop(timers)
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            if not timers:
                raise Stuck("every task waits, and no timer is set")
            self.now = max(self.now, timers[0].when())
        due = self.now + self._clock_resolution  # type: ignore[attr-defined]
        while timers and timers[0].when() < due:
            ready.append(heapq.heappop(timers))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when their time comes."""

    def _write_to_self(self) -> None:
        """Nothing sleeps that would have to be woken."""


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end under virtual time; what is left of tasks is cancelled."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        finally:
            asyncio.set_event_loop(None)
            loop.close()
