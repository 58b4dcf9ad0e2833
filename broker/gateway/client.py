"""A device's transport through a gateway: `ws://account:password@host:port` or `wss://…`.

What only workers do with a broker (other queues, dead letters, counting) a gateway refuses, and so does this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

import aiohttp
from aiohttp import WSMsgType

from broker.gateway import wire
from broker.gateway.address import GatewayAddress, connect_error, parse_address
from broker.gateway.client_subscription import ClientSubscription
from broker.gateway.wire import FROM_GATEWAY, Kind, Packet
from broker.transport.base import Depth, Frame, Queue
from broker.transport.socket_progress import LEAST_BYTES_S, tcp_bytes
from broker.transport.topology import REPLY_TO, is_reply_slot, reply_queue
from spliteasy.errors import LinkError, LinkRefused, WireError

CONNECT_S = 15.0
REQUEST_S = 30.0
PUBLISH_S = 90.0
"""A little longer than a gateway waits for the broker's confirm. It runs from when the last bytes got
through: on a slow link a frame takes as long as it takes."""
CLOSE_S = 2.0
LOOK_S = 1.0
LEAST_SILENCE_S = 5.0
MAX_MESSAGE_BYTES = (16 << 20) + wire.OVERHEAD_BYTES
"""The largest packet that is taken from a gateway, whatever it says of itself."""
MAX_NUMBER = (1 << 32) - 1


async def connect(url: str) -> GatewayTransport:
    """Connect and authenticate. Raises what connecting to the broker itself raises."""
    address = parse_address(url)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=address.tls or True))
    socket: aiohttp.ClientWebSocketResponse | None = None
    try:
        async with asyncio.timeout(CONNECT_S):
            socket = await session.ws_connect(
                address.endpoint,
                protocols=(wire.PROTOCOL,),
                max_msg_size=MAX_MESSAGE_BYTES,
                autoping=False,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
            if socket.protocol != wire.PROTOCOL:
                raise LinkRefused(
                    f"what answers at {address.server} is no gateway of this version", hint="upgrade one side"
                )
            welcome = await _authenticate(socket, address)
    except (Exception, asyncio.CancelledError) as error:
        await _close(session, socket)
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise connect_error(error, address.server) from None
    return GatewayTransport(session, socket, address, welcome)


async def _close(session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse | None) -> None:
    """Close what there is; how, is of no interest any more."""
    if socket is not None:
        with suppress(ConnectionError):
            await socket.close()  # within CLOSE_S
    await session.close()


async def _authenticate(socket: aiohttp.ClientWebSocketResponse, address: GatewayAddress) -> Packet:
    hello = Packet(kind=Kind.HELLO, text=address.account, body=address.password.encode())
    await socket.send_bytes(wire.encode_packet(hello))
    message = await socket.receive()
    if message.type is not WSMsgType.BINARY:
        raise LinkError(f"the gateway at {address.server} closed the connection")
    packet = wire.parse_packet(message.data, {Kind.WELCOME, Kind.FAILED}, frame_bytes=0)
    if packet.kind is Kind.FAILED:
        raise wire.error_of(packet)
    return packet


class GatewayTransport:
    """One life of one WebSocket; see `broker.transport.Transport`. Made by `connect`."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        socket: aiohttp.ClientWebSocketResponse,
        address: GatewayAddress,
        welcome: Packet,
    ) -> None:
        self._session = session
        self._socket = socket
        self._account = address.account
        self._server = address.server
        self._max_frame_bytes = welcome.number
        self._silence_s = max(LEAST_SILENCE_S, 1.5 * welcome.argument / 1000)
        self._last_number = 0
        self._requests: dict[int, asyncio.Future[None]] = {}
        self._subscriptions: dict[int, ClientSubscription] = {}
        self._publishing_until: set[asyncio.Timeout] = set()
        """The deadlines of the frames that are being published."""
        self._heard = 0
        self._error: LinkError | None = None
        self._lost = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._watch())]

    @property
    def principal(self) -> str:
        return self._account

    async def declare(self, *queues: Queue) -> None:
        for queue in queues:
            device, _, nonce = queue.name.removeprefix("spliteasy.reply.").partition(".")
            if not is_reply_slot(queue.name, device) or queue != reply_queue(device, nonce):
                self._refuse(f"declare {queue.name}")
            await self._request(Packet(kind=Kind.DECLARE, text=queue.name))

    async def publish(
        self,
        routing_key: str,
        frame: Frame,
        *,
        to_queue: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._check()
        headers = headers or {}
        if to_queue or headers.keys() - {REPLY_TO}:
            self._refuse("publish but under its own key")
        nbytes = memoryview(frame).nbytes
        if nbytes > self._max_frame_bytes:
            raise LinkRefused(f"a frame of {nbytes} bytes, the gateway takes {self._max_frame_bytes}")
        reply_to = headers.get(REPLY_TO)
        packet = Packet(
            kind=Kind.PUBLISH, text=f"{routing_key}\n{reply_to}" if reply_to else routing_key, body=frame
        )
        limit = asyncio.timeout(PUBLISH_S)
        self._publishing_until.add(limit)
        try:
            await self._request(packet, limit)
        finally:
            self._publishing_until.discard(limit)

    async def subscribe(self, queue: str, *, prefetch: int, exclusive: bool = False) -> ClientSubscription:
        if prefetch < 1:
            raise ValueError("prefetch is at least 1")
        self._check()
        number = self._next_number()
        subscription = ClientSubscription(self, number)
        self._subscriptions[number] = subscription
        flags = wire.EXCLUSIVE if exclusive else 0
        packet = Packet(kind=Kind.SUBSCRIBE, flags=flags, number=number, argument=prefetch, text=queue)
        try:
            await self._request(packet)
        except BaseException:
            self._subscriptions.pop(number, None)
            raise
        return subscription

    async def is_as_declared(self, queue: Queue) -> bool:
        self._refuse(f"look at {queue.name}")

    async def depth(self, queue: str) -> Depth | None:
        self._refuse(f"count what {queue} holds")

    async def delete(self, queue: str) -> None:
        self._refuse(f"delete {queue}")

    async def wait_lost(self) -> None:
        await self._lost.wait()

    @property
    def lost(self) -> LinkError | None:
        return self._error

    async def close(self) -> None:
        self._lose(LinkError("the connection is closed"))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    # What subscriptions call --------------------------------------------------------------------------

    async def ack(self, number: int, tag: int) -> None:
        """Acknowledge a delivery of a subscription."""
        self._check()
        await self._send(Packet(kind=Kind.ACK, number=number, argument=tag))

    async def end(self, number: int) -> None:
        """Close a subscription. Raises LinkError where the connection is lost."""
        self._subscriptions.pop(number, None)
        await self._request(Packet(kind=Kind.END, argument=number))

    # Requests -----------------------------------------------------------------------------------------

    async def _request(self, packet: Packet, limit: asyncio.Timeout | None = None) -> None:
        """Send a request; return once it was carried out. Raises what the gateway says of it."""
        self._check()
        number = packet.number or self._next_number()
        answered = self._requests[number] = asyncio.get_running_loop().create_future()
        try:
            async with limit or asyncio.timeout(REQUEST_S):
                await self._send(
                    Packet(
                        kind=packet.kind,
                        flags=packet.flags,
                        number=number,
                        argument=packet.argument,
                        text=packet.text,
                        body=packet.body,
                    )
                )
                await answered
        except TimeoutError:
            raise LinkError("the gateway did not answer in time") from None
        finally:
            self._requests.pop(number, None)
            if answered.done() and not answered.cancelled():
                answered.exception()  # seen

    async def _send(self, packet: Packet) -> None:
        try:
            await self._socket.send_bytes(wire.encode_packet(packet))
        except ConnectionError:
            self._lose(LinkError(f"the connection to {self._server} was lost"))
            self._check()

    def _next_number(self) -> int:
        self._last_number = self._last_number % MAX_NUMBER + 1
        return self._last_number

    def _refuse(self, what: str) -> NoReturn:
        self._check()
        raise LinkRefused(f"a device may not {what}", hint="workers connect to the broker itself")

    def _check(self) -> None:
        if self._error is not None:
            raise LinkError(self._error.message)

    # What the gateway says ----------------------------------------------------------------------------

    async def _read(self) -> None:
        error = LinkError(f"the connection to {self._server} was lost")
        try:
            async for message in self._socket:
                self._heard += 1
                if message.type is WSMsgType.PING:
                    await self._socket.pong(message.data)
                elif message.type is WSMsgType.BINARY:
                    self._take(wire.parse_packet(message.data, FROM_GATEWAY, frame_bytes=MAX_MESSAGE_BYTES))
        except ConnectionError:
            pass
        except WireError as broken:
            error = LinkError(f"what the gateway at {self._server} says can't be read: {broken.message}")
        self._lose(error)

    def _take(self, packet: Packet) -> None:
        match packet.kind:
            case Kind.DONE:
                self._answer(packet.number, None)
            case Kind.FAILED if packet.number:
                self._answer(packet.number, wire.error_of(packet))
            case Kind.FAILED:
                self._lose(wire.error_of(packet))
            case Kind.DELIVERY:
                subscription = self._subscriptions.get(packet.number)
                if subscription is not None:
                    subscription.put(packet)
            case Kind.ENDED:
                ended = self._subscriptions.pop(packet.number, None)
                if ended is not None:
                    ended.finish(wire.error_of(packet))
            case _:
                raise WireError("WELCOME comes once")

    def _answer(self, number: int, error: LinkError | None) -> None:
        answered = self._requests.get(number)
        if answered is None or answered.done():
            return  # nobody waits for it any more
        if error is None:
            answered.set_result(None)
        else:
            answered.set_exception(error)

    # Loss -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Give the link up when nothing has come for longer than a gateway is silent; put off the deadlines
        of an upload that goes on.
        """
        found = self._socket.get_extra_info("socket")
        silent_s, last, acked = 0.0, (0, 0), 0
        while True:
            await asyncio.sleep(LOOK_S)
            counted = tcp_bytes(found)
            now = (counted.received if counted else 0, self._heard)
            silent_s = 0.0 if now != last else silent_s + LOOK_S
            last = now
            if counted is not None:
                if counted.acked >= acked + LEAST_BYTES_S * LOOK_S:
                    until_s = asyncio.get_running_loop().time() + PUBLISH_S
                    for limit in self._publishing_until:
                        if not limit.expired():
                            limit.reschedule(until_s)
                acked = counted.acked
            if silent_s >= self._silence_s:
                self._lose(LinkError(f"nothing came from {self._server} for {silent_s:.0f} s"))

    def _lose(self, error: LinkError) -> None:
        """The transport ends, once: all who wait learn of it."""
        if self._error is not None:
            return
        self._error = error
        self._lost.set()
        for subscription in self._subscriptions.values():
            subscription.finish(error)
        self._subscriptions.clear()
        for answered in self._requests.values():
            if not answered.done():
                answered.set_exception(LinkError(error.message))
        self._closing = asyncio.create_task(self._close())

    async def _close(self) -> None:
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await _close(self._session, self._socket)
