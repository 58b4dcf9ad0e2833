"""Who may send the next frame: a bounded window of confirms, shared by messages of different urgency."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable


class Room:
    """At most `frames` frames, and about `limit_bytes()` bytes, wait for confirms. Who waits gets room
    by urgency (the smallest number first), then in the order of `turn`.
    """

    def __init__(self, frames: int, limit_bytes: Callable[[], float] = lambda: math.inf) -> None:
        """`limit_bytes` never keeps out the first two: one flows while the other is confirmed."""
        self._frames = frames
        self._limit_bytes = limit_bytes
        self._flying = 0
        self._flying_bytes = 0
        self._turns = 0
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []

    def turn(self) -> int:
        """A message's place among those of its urgency."""
        self._turns += 1
        return self._turns

    async def enter(self, nbytes: int, *, urgency: int = 0, turn: int = 0) -> None:
        """Return when a frame of so many bytes may leave. Each message has one frame waiting at a time."""
        if not self._waiting and self._fits(nbytes):
            self._take(nbytes)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, turn, nbytes, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(nbytes)
            raise

    def leave(self, nbytes: int) -> None:
        """A frame was confirmed, or was not sent."""
        self._flying -= 1
        self._flying_bytes -= nbytes
        while self._waiting:
            _, _, wanted, place = self._waiting[0]
            if not place.done() and not self._fits(wanted):
                return
            heapq.heappop(self._waiting)
            if not place.done():
                self._take(wanted)
                place.set_result(None)

    def _fits(self, nbytes: int) -> bool:
        within = self._flying < 2 or self._flying_bytes + nbytes <= self._limit_bytes()
        return self._flying < self._frames and within

    def _take(self, nbytes: int) -> None:
        self._flying += 1
        self._flying_bytes += nbytes
