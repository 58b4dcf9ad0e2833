"""The transport over RabbitMQ (3.10 to 4.x), by aiormq.

One transport is two connections, for publishing and for consuming, because a broker that blocks
publishers stops reading from their whole connection. aiormq does not reconnect: when either is lost, the
transport is. Each exchange is published to over a channel of its own, so that one that is not there (an
error closes the channel) fails no frames to others; each subscription has its own channel as well.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiormq
from aiormq.channel import Channel

from broker.amqp.channels import open_channel, quietly, seen
from broker.amqp.errors import Address, connect_error, lost_error, parse_urls, translated
from broker.amqp.options import AmqpOptions
from broker.amqp.queues import declare_queue
from broker.amqp.subscription import AmqpSubscription
from broker.amqp.wire import AmqpConnection, Wire
from broker.transport import topology
from broker.transport.base import Depth, Frame, Queue
from spliteasy.errors import LinkError, LinkRefused

# All that aiormq has to say comes as an error of ours; its log would say it twice, on several lines.
logging.getLogger("aiormq").addHandler(logging.NullHandler())
logging.getLogger("aiormq").propagate = False

_DRAW = random.Random()
_PERSISTENT = 2
_TRANSIENT = 1


async def connect(
    url: str, *, options: AmqpOptions | None = None, rng: random.Random | None = None
) -> AmqpTransport:
    """Connect to `amqp://user:password@host:port/vhost` or `amqps://…?cafile=…&certfile=…&keyfile=…`.

    Of a cluster there may be several nodes, `host:port,host:port`: they are tried in turn, beginning with one
    that is drawn (by `rng`), so that clients spread over them. Where none takes the connection, the error is
    one that may pass, if any is: the caller tries again.

    Raises `LinkError` where the broker can't be reached, `LinkDeferred` where it may say yes later, and
    `LinkRefused` where it, or the URL, is at fault.
    """
    options = options or AmqpOptions()
    addresses, errors = parse_urls(url), list[LinkError]()
    first = (rng or _DRAW).randrange(len(addresses))
    for address in addresses[first:] + addresses[:first]:
        try:
            return await _connect_to(address, options)
        except LinkError as error:
            errors.append(error)
    raise next((error for error in errors if not isinstance(error, LinkRefused)), errors[0])


async def _connect_to(address: Address, options: AmqpOptions) -> AmqpTransport:
    """Connect to one node. Raises as `connect`."""
    wires = (Wire(options.tcp_timeout_s), Wire(options.tcp_timeout_s))
    publishing, consuming = (
        _new_connection(address, options, name, wire)
        for name, wire in zip(("publish", "consume"), wires, strict=True)
    )
    try:
        async with asyncio.timeout(options.connect_timeout_s):
            # Both to their end: aiormq leaves loose ends where it is cancelled while connecting.
            outcomes = await asyncio.gather(publishing.connect(), consuming.connect(), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
    except (Exception, asyncio.CancelledError) as error:
        await quietly((publishing.close(), consuming.close()), options.close_timeout_s)
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise connect_error(error, address) from None
    return AmqpTransport(address, options, publishing=publishing, consuming=consuming, wires=wires)


class AmqpTransport:
    """One life of a pair of connections; see `broker.transport.Transport`. Made by `connect`."""

    def __init__(
        self,
        address: Address,
        options: AmqpOptions,
        *,
        publishing: AmqpConnection,
        consuming: AmqpConnection,
        wires: tuple[Wire, Wire],
    ) -> None:
        """`wires`: of the publishing and the consuming connection."""
        self._wires = wires
        self._publishing_until: set[asyncio.Timeout] = set()
        """The deadlines of the frames that are being published."""
        self.options = options
        self._address = address
        self._publishing = publishing
        self._consuming = consuming
        self._publish_channels: dict[str, Channel] = {}
        # Opened at once, so that what is sent first after a reconnect waits for no more than the reply queue.
        self._spare: asyncio.Task[Channel] | None = asyncio.create_task(
            open_channel(publishing, confirms=True)
        )
        self._spare.add_done_callback(seen)
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
        async with self.call(), self._channel() as channel:
            for queue in queues:
                await declare_queue(channel, queue, delivery_limit=self.options.delivery_limit)
                self._bindings[queue.name] = queue.bindings

    async def publish(
        self,
        routing_key: str,
        frame: Frame,
        *,
        to_queue: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        exchange = "" if to_queue else topology.UPLINK
        await self.publish_to(exchange, routing_key, frame, persistent=False, headers=headers)

    async def is_as_declared(self, queue: Queue) -> bool:
        """Asking counts as use, as for `depth`."""
        if await self.depth(queue.name) is None:
            return False
        async with self.call():
            try:
                async with self._channel() as channel:
                    await declare_queue(channel, queue, delivery_limit=self.options.delivery_limit)
            except aiormq.exceptions.ChannelLockedResource:
                return False  # a queue of one connection, which ends with it
            except aiormq.exceptions.ChannelPreconditionFailed:
                async with self._channel() as channel:
                    await channel.queue_delete(queue.name)
                return False
        return True

    async def subscribe(self, queue: str, *, prefetch: int, exclusive: bool = False) -> AmqpSubscription:
        if prefetch < 1:
            raise ValueError("prefetch is at least 1")
        async with self.call():
            channel = await self._plain_channel()
            subscription = AmqpSubscription(self, channel, queue, self._bindings.get(queue))
            try:
                await subscription.begin(prefetch, exclusive=exclusive)
            except aiormq.exceptions.ChannelNotFoundEntity:
                await subscription.close()
                raise LinkRefused(f"there is no queue {queue}", hint="declare it first") from None
            except aiormq.exceptions.ChannelAccessRefused as error:
                await subscription.close()
                if "exclusive use" not in str(error):
                    raise
                raise LinkError(f"somebody else reads {queue} alone") from None
            except BaseException:
                await subscription.close()
                raise
        self._subscriptions.append(subscription)
        return subscription

    async def depth(self, queue: str) -> Depth | None:
        """Return what the queue holds. For RabbitMQ, asking counts as use: it puts off the queue's expiry."""
        async with self.call():
            try:
                async with self._channel() as channel:
                    found = await channel.queue_declare(queue, passive=True)
            except (aiormq.exceptions.ChannelNotFoundEntity, aiormq.exceptions.ChannelLockedResource):
                return None
        return Depth(messages=found.message_count or 0, consumers=found.consumer_count or 0)

    async def delete(self, queue: str) -> None:
        async with self.call(), self._channel() as channel:
            await channel.queue_delete(queue)

    async def wait_lost(self) -> None:
        await self._lost.wait()

    @property
    def lost(self) -> LinkError | None:
        return self._error

    async def close(self) -> None:
        await asyncio.gather(*(each.settle() for each in self._subscriptions))
        self._lose(LinkError("the connection is closed"))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    # Publishing ------------------------------------------------------------------------------------

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
        async with self.call(publishing=True):
            channel = await self._publish_channel(exchange)
            await channel.basic_publish(
                body, exchange=exchange, routing_key=routing_key, properties=properties, mandatory=True
            )

    async def _publish_channel(self, exchange: str) -> Channel:
        """Return the channel for that exchange: opened at first, and again after an error closed it."""
        async with self._opening:
            channel = self._publish_channels.get(exchange)
            if channel is None or channel.is_closed:
                channel = await self._spare_channel() or await open_channel(self._publishing, confirms=True)
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

    # Channels --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        """Lend a channel for one call, so that what the broker refuses closes no other.

        Left in order, the channel stays open for the next call: opening and closing would be two round trips.
        """
        channel = await self._plain_channel()
        try:
            yield channel
        except BaseException:
            await quietly([channel.close()], self.options.close_timeout_s)
            raise
        if self._idle is None:
            self._idle = channel
        else:
            await quietly([channel.close()], self.options.close_timeout_s)

    async def _plain_channel(self) -> Channel:
        """One without confirms on the consuming connection, for the caller alone."""
        idle, self._idle = self._idle, None
        if idle is not None and not idle.is_closed:
            return idle
        return await open_channel(self._consuming, confirms=False)

    # Loss ------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def call(self, *, publishing: bool = False) -> AsyncIterator[None]:
        """Wrap each use of aiormq: it ends in time, and only our own errors leave it."""
        self._check()
        options = self.options
        limit = asyncio.timeout(options.publish_timeout_s if publishing else options.call_timeout_s)
        if publishing:
            self._publishing_until.add(limit)
        try:
            with translated():
                async with limit:
                    yield
        except LinkError as error:
            if type(error) is LinkError:
                self._check()  # where the connection was lost, that is the reason
            raise
        finally:
            self._publishing_until.discard(limit)

    def _check(self) -> None:
        if self._error is not None:
            raise LinkError(self._error.message)

    def _on_connection_closed(self, closing: asyncio.Future[Any]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self._lose(lost_error(error, self._address))

    def _lose(self, error: LinkError) -> None:
        """The transport ends, once: both connections go, and all who wait learn of it."""
        if self._error is not None:
            return
        self._error = error
        self._lost.set()
        self._watchdog.cancel()
        for subscription in self._subscriptions:
            subscription.end(error)
        closes: list[Awaitable[Any]] = [self._publishing.close(), self._consuming.close()]
        if self._spare is not None:
            closes.append(self._spare)
        self._closing = asyncio.create_task(self._close(closes))

    async def _close(self, closes: Iterable[Awaitable[Any]]) -> None:
        await quietly(closes, self.options.close_timeout_s)
        for wire in self._wires:
            wire.abort()

    async def _watch(self) -> None:
        """A connection, and a consumer too, may vanish without a word, so look after them."""
        while True:
            await asyncio.sleep(self.options.watchdog_s)
            self._look_at_wires()
            self._subscriptions = [each for each in self._subscriptions if not each.finished]
            for subscription in self._subscriptions:
                subscription.check_alive()

    def _look_at_wires(self) -> None:
        """Put off the deadlines of an upload that goes on; give up a link that is silent."""
        every_s = self.options.watchdog_s
        going_on, _ = [wire.look(every_s) for wire in self._wires]
        if going_on:
            until_s = asyncio.get_running_loop().time() + self.options.publish_timeout_s
            for limit in self._publishing_until:
                limit.reschedule(until_s)
        beat_s = self._consuming.heartbeat_timeout  # the URL may say another than the options
        both_s = self.options.silence_s or max(5.0, 1.5 * beat_s)
        silent_s = [wire.silent_s for wire in self._wires]
        if beat_s and (min(silent_s) >= both_s or max(silent_s) >= (beat_s + 1) * 3):
            for wire in self._wires:
                wire.abort()
            self._lose(LinkError(f"nothing came from {self._address} for {max(silent_s):.0f} s"))


def _new_connection(address: Address, options: AmqpOptions, name: str, wire: Wire) -> AmqpConnection:
    url = address.with_options(heartbeat=options.heartbeat_s, name=f"spliteasy-{name}")
    try:
        return AmqpConnection(url, transport_factory=wire, limit=options.stream_bytes)
    except ValueError:
        raise LinkRefused("the broker's URL is malformed", hint="quote what is special in it") from None
