"""A device's reply queue has to be as devices are to declare it: classic, and gone without a reader.

A device declares its reply queues itself, with whatever type and limits it likes. One of another kind gets no
reply, and is deleted: what nobody bounds must not hold anything.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from broker.protocol.messages import new_nonce
from broker.transport.base import Transport
from broker.transport.topology import REPLY_QUEUE, reply_queue
from spliteasy.errors import LinkRefused

TRUSTED_S = 30.0
TRUSTED_BYTES = 16 << 20
"""A queue is trusted for this long, and for this many bytes of replies, to be what it was: its device may
declare it again."""
MAX_QUEUES = 10_000


@dataclass(slots=True)
class _Seen:
    until_s: float
    left_bytes: int


class ReplyQueues:
    """Remembers which reply queues were looked at over one connection, and when. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def forget(self) -> None:
        """The connection is another one: the broker may be, too."""
        self._seen.clear()

    async def may_look(self, transport: Transport) -> None:
        """Raises LinkRefused where this account may not look at reply queues."""
        probe = reply_queue("workers", new_nonce())
        try:
            await transport.declare(probe)
        except LinkRefused as error:
            raise LinkRefused(
                error.message, hint="workers look at devices' reply queues: enroll the workers' account again"
            ) from None
        await transport.delete(probe.name)

    async def is_fit(self, transport: Transport, name: str, nbytes: int) -> bool:
        """Return whether so many bytes may be sent there. Raises LinkError."""
        seen = self._seen.get(name)
        if seen is None or seen.left_bytes <= 0 or seen.until_s <= self._clock():
            match = REPLY_QUEUE.fullmatch(name)
            if match is None or not await transport.is_as_declared(reply_queue(match[1], match[2])):
                self._seen.pop(name, None)
                return False
            seen = self._seen[name] = _Seen(self._clock() + TRUSTED_S, TRUSTED_BYTES)
            self._seen.move_to_end(name)
            if len(self._seen) > MAX_QUEUES:
                self._seen.popitem(last=False)
        seen.left_bytes -= nbytes
        return True
