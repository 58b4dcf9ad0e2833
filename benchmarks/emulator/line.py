"""One direction of the link, shared by all connections: when each piece of bytes gets through."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import Enum

_QUEUE_S = 0.05
"""This much line time may wait to be sent: enough that a timer that fires late leaves no gap."""
_SHORTEST_S = 1e-6
"""A time that is not worth waiting for, and perhaps no more than what rounding has left."""
_PIECE_S = 0.002
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 1460, 1 << 16
_OPEN_WINDOW_BYTES = 1 << 20
EPOLL_LATE_S = 0.0005
"""Event loops on epoll round timeouts up to whole milliseconds: aiming this much earlier is right on
average.
"""


class Direction(Enum):
    UP = "up"
    """The direction from the device to the server."""
    DOWN = "down"


class Line:
    """A queue that is served at a rate, then a delay.

    A piece that enters at t has been sent at max(t, end of the piece before) + bytes / rate, and arrives a
    latency later. It is computed, not slept, so that late timers don't add up.
    """

    def __init__(self, *, seed: int, timer_late_s: float) -> None:
        self._timer_late_s = timer_late_s
        self._random = random.Random(seed)
        self._free_at = 0.0
        self._turn = asyncio.Lock()
        self._moving = asyncio.Event()
        self._moving.set()
        self._left: int | None = None
        self._on_used_up: Callable[[], None] | None = None
        self.rate: float | None = None
        """The rate in bytes a second; None: no limit."""
        self.latency_s = 0.0
        self.jitter_s = 0.0

    @property
    def piece_bytes(self) -> int:
        """Return how much to take at once, so that connections take turns finely."""
        piece = _MAX_PIECE_BYTES if self.rate is None else int(self.rate * _PIECE_S)
        return max(_MIN_PIECE_BYTES, min(_MAX_PIECE_BYTES, piece))

    @property
    def window_bytes(self) -> int:
        """Return how much a connection may have on its way: the bandwidth-delay product and the queue."""
        if self.rate is None:
            return _OPEN_WINDOW_BYTES
        return self.piece_bytes + int(self.rate * (self.latency_s + self.jitter_s + _QUEUE_S))

    async def enter(self, count: int) -> float:
        """Wait for one's turn and for room in the queue, put `count` bytes into it; the loop's time at
        which they arrive.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            await self._moving.wait()
            while (wait_s := self._free_at - loop.time() - _QUEUE_S) >= _SHORTEST_S:
                await asyncio.sleep(wait_s)
                await self._moving.wait()
            sending_s = count / self.rate if self.rate is not None else 0.0
            self._free_at = max(self._free_at, loop.time()) + sending_s
        return self._free_at + self.latency_s + self._random.uniform(0, self.jitter_s)

    async def arrive(self, due: float) -> None:
        """Wait until that time, and while the line is stalled."""
        wait_s = due - asyncio.get_running_loop().time() - self._timer_late_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        await self._moving.wait()

    def stall(self) -> None:
        self._moving.clear()

    def resume(self) -> None:
        self._moving.set()

    def limit(self, count: int, on_used_up: Callable[[], None]) -> None:
        """Pass no more of the current piece after `count` more bytes have arrived, and call."""
        self._left, self._on_used_up = count, on_used_up

    def allow(self, count: int) -> int:
        """Count the bytes, and return how many of `count` that arrive now still get through."""
        if self._left is None:
            return count
        passed = min(count, self._left)
        self._left -= passed
        return passed

    def used_up(self) -> None:
        """Call what `limit` was given, once, if its bytes have arrived."""
        if self._left == 0 and self._on_used_up is not None:
            call, self._left, self._on_used_up = self._on_used_up, None, None
            call()
