"""A device's subscription through a gateway."""

from __future__ import annotations

from contextlib import suppress
from typing import NoReturn, Protocol

from broker.gateway.wire import COPIED, REDELIVERED, Packet
from broker.transport.base import Delivery
from broker.transport.inbox import Inbox
from spliteasy.errors import LinkError, LinkRefused


class Owner(Protocol):
    """The part of the transport that its subscriptions use."""

    async def ack(self, number: int, tag: int) -> None: ...

    async def end(self, number: int) -> None: ...


class ClientSubscription:
    """See `broker.transport.Subscription`."""

    def __init__(self, owner: Owner, number: int) -> None:
        """`number` names it on the wire."""
        self._owner = owner
        self._number = number
        self._inbox = Inbox()
        self._open: set[int] = set()
        self._ended: LinkError | None = None

    def __aiter__(self) -> ClientSubscription:
        return self

    async def __anext__(self) -> Delivery:
        return await self._inbox.get()

    async def ack(self, delivery: Delivery) -> None:
        if self._ended is not None:
            raise LinkError(self._ended.message)
        if delivery.tag not in self._open:
            raise LinkError("the delivery is not this subscription's, or was acknowledged before")
        self._open.discard(delivery.tag)
        await self._owner.ack(self._number, delivery.tag)

    async def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._refuse("bury a delivery")

    async def cancel(self) -> None:
        self._refuse("leave a queue but for good")

    async def close(self) -> None:
        if self._ended is None:
            self.finish(None)
            with suppress(LinkError):
                await self._owner.end(self._number)

    # What the transport calls -----------------------------------------------------------------------

    def put(self, packet: Packet) -> None:
        """A delivery has come."""
        routing_key, _, sender = packet.text.partition("\n")
        self._open.add(packet.argument)
        self._inbox.put(
            Delivery(
                body=packet.body,
                routing_key=routing_key,
                principal=sender or None,
                redelivered=bool(packet.flags & REDELIVERED),
                copied=bool(packet.flags & COPIED),
                tag=packet.argument,
            )
        )

    def finish(self, error: LinkError | None) -> None:
        """No more deliveries and acks: closed (no error), or ended by the gateway."""
        if self._ended is None:
            self._ended = error or LinkError("the subscription is closed")
            self._inbox.end(error)

    def _refuse(self, what: str) -> NoReturn:
        if self._ended is not None:
            raise LinkError(self._ended.message)
        raise LinkRefused(f"a device may not {what}", hint="workers connect to the broker itself")
