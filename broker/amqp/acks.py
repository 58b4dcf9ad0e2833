"""The acknowledgements that a subscription owes the broker: acks, several at a time, and returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from aiormq.channel import Channel


class Acks:
    """The deliveries of one channel that the broker waits to hear of, by their tags.

    Acks wait up to `delay_s` for others, or until there are `at_once`: a quorum queue writes each to its
    log, but one that says "up to here" only once. What a dying process has not acknowledged comes again.
    """

    def __init__(self, channel: Channel, *, delay_s: float) -> None:
        self._channel = channel
        self.at_once = 1
        self._delay_s = delay_s
        self._open: set[int] = set()
        self._acked: list[int] = []
        """Deliveries that were acknowledged, of which the broker does not know yet."""
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.Task[None] | None = None
        """One at a time: acks that overtake each other would cost the channel."""
        self._tasks: set[asyncio.Future[None]] = set()

    def __contains__(self, tag: int) -> bool:
        """Return whether the delivery can still be acknowledged."""
        return tag in self._open

    def received(self, tag: int) -> None:
        """Tags come in ascending order."""
        self._open.add(tag)

    def ack(self, tag: int) -> bool:
        """Note an acknowledgement. Returns whether enough of them wait now to be flushed."""
        self._open.discard(tag)
        self._acked.append(tag)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._begin)
        return len(self._acked) >= self.at_once

    async def give_back(self, tag: int) -> None:
        """The delivery comes again, to the consumer of that moment."""
        await self._to_its_end(self._nack(tag))

    async def flush(self) -> None:
        """Tell the broker what was acknowledged; goes on to its end even if the caller is cancelled."""
        if self._acked:
            await asyncio.shield(self._begin())

    async def settle(self, timeout_s: float) -> None:
        """Flush, and wait until the broker knows of all. Never raises."""
        if self._acked:
            self._begin()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _begin(self) -> asyncio.Future[None]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())
            self._track(self._telling)
        return self._telling

    async def _tell(self) -> None:
        """One ack for all below the first delivery that is still open, one each for the others."""
        while self._acked:
            tags, self._acked = sorted(self._acked), []
            first = min(self._open, default=tags[-1] + 1)
            below = [tag for tag in tags if tag < first]
            if below:
                await self._channel.basic_ack(below[-1], multiple=len(below) > 1)
            for tag in tags[len(below) :]:
                await self._channel.basic_ack(tag)

    async def _nack(self, tag: int) -> None:
        """Keep the delivery open until the broker knows that it was returned: no ack may cover it."""
        await self._channel.basic_nack(tag, requeue=True)
        self._open.discard(tag)

    async def _to_its_end(self, call: Awaitable[None]) -> None:
        """Do it even if the caller is cancelled: a second ack would cost the channel."""
        task = asyncio.ensure_future(call)
        self._track(task)
        await asyncio.shield(task)

    def _track(self, task: asyncio.Future[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._told)

    def _told(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller may be gone
