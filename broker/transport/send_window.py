"""The send window bounds how many frames wait for a broker's confirm, over messages of different urgency."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable


class SendWindow:
    """At most `frames` frames, and about `limit_bytes()` bytes, wait for confirms at any time.

    Senders that wait are admitted by urgency (the smallest number first), then by ticket.
    """

    def __init__(self, frames: int, limit_bytes: Callable[[], float] = lambda: math.inf) -> None:
        """`limit_bytes` never keeps out the first two frames: one travels while the other is confirmed."""
        self._frames = frames
        self._limit_bytes = limit_bytes
        self._flying = 0
        self._flying_bytes = 0
        self._tickets = 0
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []

    def ticket(self) -> int:
        """Number a message: among messages of one urgency, the smaller number sends first."""
        self._tickets += 1
        return self._tickets

    async def acquire(self, nbytes: int, *, urgency: int = 0, ticket: int = 0) -> None:
        """Return when a frame of `nbytes` bytes may be sent. A message has one frame waiting at a time."""
        if not self._waiting and self._fits(nbytes):
            self._take(nbytes)
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, ticket, nbytes, admitted))
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.release(nbytes)
            raise

    def release(self, nbytes: int) -> None:
        """Take note that a frame was confirmed, or was not sent after all."""
        self._flying -= 1
        self._flying_bytes -= nbytes
        while self._waiting:
            _, _, wanted, admitted = self._waiting[0]
            if not admitted.done() and not self._fits(wanted):
                return
            heapq.heappop(self._waiting)
            if not admitted.done():
                self._take(wanted)
                admitted.set_result(None)

    def _fits(self, nbytes: int) -> bool:
        within = self._flying < 2 or self._flying_bytes + nbytes <= self._limit_bytes()
        return self._flying < self._frames and within

    def _take(self, nbytes: int) -> None:
        self._flying += 1
        self._flying_bytes += nbytes
