"""The transport over RabbitMQ (3.10 to 4.x), by aiormq.

One transport is two connections, for publishing and for consuming, because a broker that blocks
publishers stops reading from their whole connection. aiormq does not reconnect: when either is lost, the
transport is. Each exchange is published to over a channel of its own, so that one that is not there (an
error closes the channel) fails no frames to others; each subscription has its own channel as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiormq
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.channel import Channel

from broker import topology
from broker.amqp_errors import Address, connect_error, parse_url, translated
from broker.inbox import Inbox
from broker.transport import Delivery, Depth, Frame, Queue
from spliteasy.errors import LinkError, LinkRefused

# All that aiormq has to say comes as an error of ours; its log would say it twice, on several lines.
logging.getLogger("aiormq").addHandler(logging.NullHandler())
logging.getLogger("aiormq").propagate = False

_PERSISTENT = 2
_TRANSIENT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AmqpOptions:
    """How patient a connection is, and what it may hold."""

    connect_timeout_s: float = 15.0
    call_timeout_s: float = 30.0
    """Of declaring, subscribing and the like."""
    publish_timeout_s: float = 60.0
    """A broker that blocks publishers (no memory, no disk) confirms nothing for as long."""
    close_timeout_s: float = 5.0
    heartbeat_s: int = 5
    """aiormq takes the broker for dead after (heartbeat + 1) × 3 seconds of silence."""
    watchdog_s: float = 5.0
    stream_bytes: int = 4 << 20
    """Read buffer of a connection; asyncio's 64 KiB costs a third of the throughput."""
    delivery_limit: int = 20
    max_frame_bytes: int = 16 << 20
    """RabbitMQ 4 closes the channel over it."""


async def connect(url: str, *, options: AmqpOptions | None = None) -> AmqpTransport:
    """Connect to `amqp://user:password@host:port/vhost` or `amqps://…?cafile=…&certfile=…&keyfile=…`.

    Raises `LinkError` where the broker can't be reached, `LinkRefused` where it, or the URL, is at fault.
    """
    options = options or AmqpOptions()
    address = parse_url(url)
    publishing, consuming = (_new_connection(address, options, name) for name in ("publish", "consume"))
    try:
        async with asyncio.timeout(options.connect_timeout_s):
            # Both to their end: aiormq leaves loose ends where it is cancelled while connecting.
            outcomes = await asyncio.gather(publishing.connect(), consuming.connect(), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
    except (Exception, asyncio.CancelledError) as error:
        await _quietly((publishing.close(), consuming.close()), options.close_timeout_s)
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise connect_error(error, address) from None
    return AmqpTransport(address, options, publishing=publishing, consuming=consuming)


class AmqpTransport:
    """One life of a pair of connections; see `broker.transport.Transport`. Made by `connect`."""

    def __init__(
        self,
        address: Address,
        options: AmqpOptions,
        *,
        publishing: AbstractConnection,
        consuming: AbstractConnection,
    ) -> None:
        self.options = options
        self._address = address
        self._publishing = publishing
        self._consuming = consuming
        self._publish_channels: dict[str, Channel] = {}
        # Opened at once, so that what is sent first after a reconnect waits for no more than the reply queue.
        self._spare: asyncio.Task[Channel] | None = asyncio.create_task(
            _open_channel(publishing, confirms=True)
        )
        self._spare.add_done_callback(_seen)
        self._idle: Channel | None = None
        """A channel that a call has left, for the next call or subscription."""
        self._opening = asyncio.Lock()
        self._bindings: dict[str, tuple[str, ...]] = {}
        self._subscriptions: list[AmqpSubscription] = []
        self._lost = asyncio.Event()
        self._error: LinkError | None = None
        self._closing: asyncio.Task[None] | None = None
        for connection in (publishing, consuming):
            connection.closing.add_done_callback(self._on_connection_closed)
        self._watchdog = asyncio.create_task(self._watch())

    @property
    def principal(self) -> str:
        return self._address.account

    async def declare(self, *queues: Queue) -> None:
        async with self._call(), self._channel() as channel:
            for queue in queues:
                await self._declare(channel, queue)

    async def publish(
        self,
        routing_key: str,
        frame: Frame,
        *,
        to_queue: bool = False,
        persistent: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        exchange = "" if to_queue else topology.UPLINK
        await self._publish(exchange, routing_key, frame, persistent=persistent, headers=headers)

    async def subscribe(self, queue: str, *, prefetch: int) -> AmqpSubscription:
        if prefetch < 1:
            raise ValueError("prefetch is at least 1")
        async with self._call():
            channel = await self._plain_channel()
            subscription = AmqpSubscription(self, channel, queue, self._bindings.get(queue))
            try:
                await subscription._begin(prefetch)
            except aiormq.exceptions.ChannelNotFoundEntity:
                await subscription.close()
                raise LinkRefused(f"there is no queue {queue}", hint="declare it first") from None
            except BaseException:
                await subscription.close()
                raise
        self._subscriptions.append(subscription)
        return subscription

    async def depth(self, queue: str) -> Depth | None:
        """For RabbitMQ, asking counts as use: it puts off the queue's expiry."""
        async with self._call():
            try:
                async with self._channel() as channel:
                    found = await channel.queue_declare(queue, passive=True)
            except aiormq.exceptions.ChannelNotFoundEntity:
                return None
        return Depth(messages=found.message_count or 0, consumers=found.consumer_count or 0)

    async def delete(self, queue: str) -> None:
        async with self._call(), self._channel() as channel:
            await channel.queue_delete(queue)

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def close(self) -> None:
        self._lose(LinkError("the connection is closed"))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    # Publishing ------------------------------------------------------------------------------------

    async def _publish(
        self,
        exchange: str,
        routing_key: str,
        frame: Frame,
        *,
        persistent: bool,
        headers: Mapping[str, str] | None,
    ) -> None:
        body = bytes(frame)
        if len(body) > self.options.max_frame_bytes:
            raise LinkRefused(
                f"a frame of {len(body)} bytes, the broker takes {self.options.max_frame_bytes}"
            )
        properties = aiormq.spec.Basic.Properties(
            delivery_mode=_PERSISTENT if persistent else _TRANSIENT,
            user_id=self.principal,
            headers=dict(headers) if headers else None,
        )
        async with self._call(self.options.publish_timeout_s):
            channel = await self._publish_channel(exchange)
            await channel.basic_publish(
                body, exchange=exchange, routing_key=routing_key, properties=properties, mandatory=True
            )

    async def _publish_channel(self, exchange: str) -> Channel:
        """The channel for that exchange: opened at first, and anew after an error closed it."""
        async with self._opening:
            channel = self._publish_channels.get(exchange)
            if channel is None or channel.is_closed:
                channel = await self._spare_channel() or await _open_channel(self._publishing, confirms=True)
                self._publish_channels[exchange] = channel
            return channel

    async def _spare_channel(self) -> Channel | None:
        """The one opened at the start, for who comes first. Cancelled, it is left for the next."""
        if self._spare is None:
            return None
        await asyncio.wait({self._spare})
        spare, self._spare = self._spare, None
        channel = spare.result()
        return None if channel.is_closed else channel

    # Declaring -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        """A channel for one call: what the broker refuses closes no other. Left in order, it stays open for
        who needs one next: opening and closing would be two round trips."""
        channel = await self._plain_channel()
        try:
            yield channel
        except BaseException:
            await _quietly([channel.close()], self.options.close_timeout_s)
            raise
        if self._idle is None:
            self._idle = channel
        else:
            await _quietly([channel.close()], self.options.close_timeout_s)

    async def _plain_channel(self) -> Channel:
        """One without confirms on the consuming connection, for the caller alone."""
        idle, self._idle = self._idle, None
        if idle is not None and not idle.is_closed:
            return idle
        return await _open_channel(self._consuming, confirms=False)

    async def _declare(self, channel: Channel, queue: Queue) -> None:
        if queue.bindings:
            await channel.exchange_declare(topology.UPLINK, exchange_type="topic", durable=True)
        if queue.dead_letters or queue.name == topology.DEAD:
            await channel.exchange_declare(topology.DEAD, exchange_type="fanout", durable=True)
        await channel.queue_declare(
            queue.name, durable=True, arguments=queue_arguments(queue, self.options.delivery_limit)
        )
        for pattern in queue.bindings:
            await channel.queue_bind(queue.name, topology.UPLINK, routing_key=pattern)
        if queue.name == topology.DEAD:
            await channel.queue_bind(queue.name, topology.DEAD)
        self._bindings[queue.name] = queue.bindings

    # Loss ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _call(self, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Around each use of aiormq: ends in time, and lets only our own errors out."""
        self._check()
        try:
            with translated():
                async with asyncio.timeout(timeout_s or self.options.call_timeout_s):
                    yield
        except LinkError as error:
            if type(error) is LinkError:
                self._check()  # where the connection was lost, that is the reason
            raise

    def _check(self) -> None:
        if self._error is not None:
            raise LinkError(self._error.message)

    def _on_connection_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        text = " ".join(str(error).split())[:200] if error else ""
        self._lose(LinkError(f"the connection to {self._address} was lost{': ' + text if text else ''}"))

    def _lose(self, error: LinkError) -> None:
        """The transport ends, once: both connections go, and all who wait learn of it."""
        if self._error is not None:
            return
        self._error = error
        self._lost.set()
        self._watchdog.cancel()
        for subscription in self._subscriptions:
            subscription._end(error)
        closes: list[Awaitable[Any]] = [self._publishing.close(), self._consuming.close()]
        if self._spare is not None:
            closes.append(self._spare)
        self._closing = asyncio.create_task(_quietly(closes, self.options.close_timeout_s))

    async def _watch(self) -> None:
        """A consumer may vanish without a word, so look after them."""
        while True:
            await asyncio.sleep(self.options.watchdog_s)
            self._subscriptions = [each for each in self._subscriptions if not each._finished]
            for subscription in self._subscriptions:
                subscription._check_alive()


class AmqpSubscription:
    """See `broker.transport.Subscription`. It owns its channel, and closes it when it ends."""

    def __init__(
        self, transport: AmqpTransport, channel: Channel, queue: str, bindings: tuple[str, ...] | None
    ) -> None:
        self._transport = transport
        self._channel = channel
        self._queue = queue
        self._bindings = bindings
        """Of the queue on the uplink exchange; None where this transport did not declare it."""
        self._inbox = Inbox()
        self._unacked: set[int] = set()
        self._acks: set[asyncio.Future[None]] = set()
        self._consumer_tag = ""
        self._ended: LinkError | None = None
        self._closing: asyncio.Task[None] | None = None

    def __aiter__(self) -> AmqpSubscription:
        return self

    async def __anext__(self) -> Delivery:
        return await self._inbox.get()

    async def ack(self, delivery: Delivery) -> None:
        self._take(delivery)
        await self._settle(self._channel.basic_ack(delivery.tag))

    async def dead_letter(self, delivery: Delivery, reason: str) -> None:
        self._check(delivery)
        await self._transport._publish(
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
        async with self._transport._call():
            await self._channel.basic_cancel(self._consumer_tag)
            for delivery in self._inbox.end():
                await self._return(delivery.tag)

    async def close(self) -> None:
        self._end(None)
        if self._closing is not None:
            await asyncio.shield(self._closing)

    # What the transport calls -----------------------------------------------------------------------

    @property
    def _finished(self) -> bool:
        return self._ended is not None

    async def _begin(self, prefetch: int) -> None:
        channel = self._channel
        await channel.basic_qos(prefetch_count=prefetch)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled_by_broker)
        channel.closing.add_done_callback(self._on_channel_closed)
        answer = await channel.basic_consume(self._queue, self._on_message)
        self._consumer_tag = answer.consumer_tag or ""

    def _check_alive(self) -> None:
        alive = not self._channel.is_closed and self._consumer_tag in self._channel.consumers
        if not alive and not self._inbox.ended:
            self._end(LinkError(f"the consumer of {self._queue} is gone"))

    def _end(self, error: LinkError | None) -> None:
        """Ended by us (no error) or by the broker: no more deliveries and acks; the channel closes."""
        if self._ended is not None:
            return
        self._ended = error or LinkError("the subscription is closed")
        self._inbox.end(error)
        self._unacked.clear()
        self._closing = asyncio.create_task(self._close_channel())

    # Helpers ---------------------------------------------------------------------------------------

    async def _on_message(self, message: DeliveredMessage) -> None:
        tag = message.delivery_tag or 0
        if self._ended is not None:
            return
        self._unacked.add(tag)
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
        """Whether the routing key would not have led here: the broker hides BCC, but not the key."""
        key = message.routing_key or ""
        if message.exchange == "":
            return key != self._queue
        if message.exchange != topology.UPLINK or self._bindings is None:
            return False
        return not any(topology.matches(pattern, key) for pattern in self._bindings)

    def _on_cancelled_by_broker(self, _: object) -> None:
        self._end(LinkError(f"the broker cancelled the consumer of {self._queue}"))

    def _on_channel_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self._end(LinkError(f"the channel of {self._queue} was closed: {' '.join(str(error).split())[:200]}"))

    def _check(self, delivery: Delivery) -> None:
        if self._ended is not None:
            raise LinkError(self._ended.message)
        if delivery.tag not in self._unacked:
            raise LinkError("the delivery is not this subscription's, or was acknowledged before")

    def _take(self, delivery: Delivery) -> None:
        self._check(delivery)
        self._unacked.discard(delivery.tag)

    async def _return(self, tag: int) -> None:
        self._unacked.discard(tag)
        await self._settle(self._channel.basic_nack(tag, requeue=True))

    async def _settle(self, call: Awaitable[None]) -> None:
        """Send an ack to its end, even if the caller is cancelled: sent twice, it would cost the channel."""
        task = asyncio.ensure_future(call)
        self._acks.add(task)
        task.add_done_callback(self._settled)
        async with self._transport._call():
            await asyncio.shield(task)

    def _settled(self, task: asyncio.Future[None]) -> None:
        self._acks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the caller may be gone

    async def _close_channel(self) -> None:
        # An ack that crosses the channel's close would take down the whole connection.
        timeout_s = self._transport.options.close_timeout_s
        if self._acks:
            await asyncio.wait(self._acks, timeout=timeout_s)
        await _quietly([self._channel.close()], timeout_s)


def queue_arguments(queue: Queue, delivery_limit: int) -> dict[str, Any]:
    """The queue's arguments. What newer brokers default otherwise is said in full."""
    arguments: dict[str, Any] = {"x-queue-type": "quorum" if queue.quorum else "classic"}
    if queue.quorum:
        arguments["x-delivery-limit"] = delivery_limit
    if queue.single_active:
        arguments["x-single-active-consumer"] = True
    if queue.dead_letters:
        arguments["x-dead-letter-exchange"] = topology.DEAD
    if queue.expires_s is not None:
        arguments["x-expires"] = max(1, round(queue.expires_s * 1000))
    if queue.max_bytes is not None:
        arguments["x-max-length-bytes"] = queue.max_bytes
        arguments["x-overflow"] = "drop-head"
    return arguments


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers that are text; why the broker itself dead-lettered a message becomes `reason`."""
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    if "x-first-death-reason" in texts:
        texts.setdefault("reason", texts["x-first-death-reason"])
        texts.setdefault("queue", texts.get("x-first-death-queue", ""))
    return texts


def _new_connection(address: Address, options: AmqpOptions, name: str) -> aiormq.Connection:
    url = address.with_options(heartbeat=options.heartbeat_s, name=f"spliteasy-{name}")
    try:
        return aiormq.Connection(url, limit=options.stream_bytes)
    except ValueError:
        raise LinkRefused("the broker's URL is malformed", hint="quote what is special in it") from None


async def _open_channel(connection: AbstractConnection, *, confirms: bool) -> Channel:
    channel = await connection.channel(publisher_confirms=confirms)
    assert isinstance(channel, Channel)
    return channel


def _seen(task: asyncio.Task[Any]) -> None:
    """What it raises is told to who awaits it; there may be nobody."""
    if not task.cancelled():
        task.exception()


async def _quietly(closes: Iterable[Awaitable[Any]], timeout_s: float) -> None:
    """Await all closes; what they raise, or do not finish in time, is of no interest any more."""
    tasks = [asyncio.ensure_future(close) for close in closes]
    if not tasks:
        return
    _, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
