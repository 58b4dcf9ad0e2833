"""A limit on the upload, for a link that others need too: a token bucket over the frames sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST_S = 0.25
"""An idle link may catch up on this much, and one frame may take as long: a call on the same link stays
fluent."""

MIN_CHUNK_BYTES = 4096


class Pace:
    """Lets `bytes_per_s` through on average; over any time, at most one frame and `BURST_S` of it more.

    Only the frames count: what AMQP, TLS and TCP add comes on top, a few percent of a large message.
    """

    def __init__(
        self,
        bytes_per_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._free_s = clock()
        """The moment at which all that was let through so far has flowed, at this rate."""

    @property
    def chunk_bytes(self) -> int:
        """The payload that a frame may have at most, so that each takes a short time."""
        return max(MIN_CHUNK_BYTES, int(self._rate * BURST_S))

    async def admit(self, nbytes: int) -> None:
        """Return when a frame of so many bytes may leave; in order of the calls. Cancelled, it counts too."""
        now = self._clock()
        begin_s = max(self._free_s, now - BURST_S)
        self._free_s = begin_s + nbytes / self._rate
        if begin_s > now:
            await self._sleep(begin_s - now)
