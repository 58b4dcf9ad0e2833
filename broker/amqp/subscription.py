"""One consumer of a queue over RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Protocol

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel

from broker.amqp.acks import Acks
from broker.amqp.channels import quietly
from broker.amqp.options import AmqpOptions
from broker.transport import topology
from broker.transport.base import Delivery, Frame
from broker.transport.inbox import Inbox
from spliteasy.errors import LinkError


class SubscriptionOwner(Protocol):
    """The part of a transport that its subscriptions use."""

    @property
    def options(self) -> AmqpOptions: ...

    def call(self) -> AbstractAsyncContextManager[None]:
        """Wrap a use of aiormq: it ends in time, and raises errors of ours only."""
        ...

    async def publish_to(
        self,
        exchange: str,
        routing_key: str,
        frame: Frame,
        *,
        persistent: bool,
        headers: Mapping[str, str] | None,
    ) -> None:
        """Publish over that exchange's channel, and wait for the confirm."""
        ...


class AmqpSubscription:
    """See `broker.transport.Subscription`. It owns its channel, and closes it when it ends."""

    def __init__(
        self, transport: SubscriptionOwner, channel: Channel, queue: str, bindings: tuple[str, ...] | None
    ) -> None:
        self._transport = transport
        self._channel = channel
        self._queue = queue
        self._bindings = bindings
        """The queue's bindings on the uplink exchange, or None where this transport did not declare it."""
        self._inbox = Inbox()
        self._acks = Acks(channel, delay_s=transport.options.ack_delay_s)
        self._consumer_tag = ""
        self._ended: LinkError | None = None
        self._closing: asyncio.Task[None] | None = None

    def __aiter__(self) -> AmqpSubscription:
        return self

    async def __anext__(self) -> Delivery:
        return await self._inbox.get()

    async def ack(self, delivery: Delivery) -> None:
        self._check(delivery)
        if self._acks.ack(delivery.tag):
            async with self._transport.call():
                await self._acks.flush()

    async def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._check(delivery)
        await self._transport.publish_to(
            topology.DEAD,
            delivery.routing_key,
            delivery.body,
            persistent=True,
            headers=topology.dead_letter_headers(delivery, self._queue, reason),
        )
        await self.ack(delivery)

    async def cancel(self) -> None:
        if self._ended is not None or self._inbox.ended:
            return
        async with self._transport.call():
            await self._channel.basic_cancel(self._consumer_tag)
            for delivery in self._inbox.end():
                await self._return(delivery.tag)

    async def close(self) -> None:
        self.end(None)
        if self._closing is not None:
            await asyncio.shield(self._closing)

    # The transport calls these -----------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self._ended is not None

    async def begin(self, prefetch: int, *, exclusive: bool) -> None:
        channel = self._channel
        self._acks.at_once = max(1, prefetch // 4)
        await channel.basic_qos(prefetch_count=prefetch)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled_by_broker)
        channel.closing.add_done_callback(self._on_channel_closed)
        answer = await channel.basic_consume(self._queue, self._on_message, exclusive=exclusive)
        self._consumer_tag = answer.consumer_tag or ""

    def check_alive(self) -> None:
        alive = not self._channel.is_closed and self._consumer_tag in self._channel.consumers
        if not alive and not self._inbox.ended:
            self.end(LinkError(f"the consumer of {self._queue} is gone"))

    async def settle(self) -> None:
        """Return once the broker knows of all that was acknowledged. Never raises."""
        await self._acks.settle(self._transport.options.close_timeout_s)

    def end(self, error: LinkError | None) -> None:
        """Ended by us (no error) or by the broker: no more deliveries and acks; the channel closes."""
        if self._ended is not None:
            return
        self._ended = error or LinkError("the subscription is closed")
        self._inbox.end(error)
        self._closing = asyncio.create_task(self._close_channel())

    # Helpers ---------------------------------------------------------------------------------------

    async def _on_message(self, message: DeliveredMessage) -> None:
        tag = message.delivery_tag or 0
        if self._ended is not None:
            return
        self._acks.received(tag)
        if self._inbox.ended:  # cancelled while this one was on its way
            with suppress(LinkError):
                await self._return(tag)
            return
        properties = message.header.properties
        headers = dict(properties.headers or {})
        self._inbox.put(
            Delivery(
                body=message.body,
                routing_key=message.routing_key or "",
                principal=properties.user_id or None,
                redelivered=bool(message.redelivered),
                copied="CC" in headers or "BCC" in headers or self._is_elsewhere(message),
                headers=_texts(headers),
                tag=tag,
            )
        )

    def _is_elsewhere(self, message: DeliveredMessage) -> bool:
        """Return whether the routing key would not have led here: the broker hides BCC, but not the key."""
        key = message.routing_key or ""
        if message.exchange == "":
            return key != self._queue
        if message.exchange != topology.UPLINK or self._bindings is None:
            return False
        return not any(topology.matches(pattern, key) for pattern in self._bindings)

    def _on_cancelled_by_broker(self, _: object) -> None:
        self.end(LinkError(f"the broker cancelled the consumer of {self._queue}"))

    def _on_channel_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self.end(LinkError(f"the channel of {self._queue} was closed: {' '.join(str(error).split())[:200]}"))

    def _check(self, delivery: Delivery) -> None:
        if self._ended is not None:
            raise LinkError(self._ended.message)
        if delivery.tag not in self._acks:
            raise LinkError("the delivery is not this subscription's, or was acknowledged before")

    async def _return(self, tag: int) -> None:
        async with self._transport.call():
            await self._acks.give_back(tag)

    async def _close_channel(self) -> None:
        # An ack that crosses the channel's close would take down the whole connection.
        await self.settle()
        await quietly([self._channel.close()], self._transport.options.close_timeout_s)


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers that are text; why the broker itself dead-lettered a message becomes `reason`."""
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    if "x-first-death-reason" in texts:
        texts.setdefault("reason", texts["x-first-death-reason"])
        texts.setdefault("queue", texts.get("x-first-death-queue", ""))
    return texts
