"""One device's connection at the gateway: its packets become calls of a transport with its account."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from broker.gateway import metrics, wire
from broker.gateway.budgets import Budgets
from broker.gateway.deliveries import Deliveries
from broker.gateway.limits import GatewayLimits
from broker.gateway.wire import FROM_DEVICE, Kind, Packet
from broker.transport.base import Transport
from broker.transport.send_window import SendWindow
from broker.transport.socket_progress import LEAST_BYTES_S, TcpBytes, tcp_bytes
from broker.transport.topology import REPLY_TO, device_of_key, is_reply_slot, reply_slot
from spliteasy.errors import AccountGone, LinkDeferred, LinkError, LinkRefused, WireError
from spliteasy.observability.meter import Meter

log = structlog.get_logger(__name__)

FAREWELL_S = 2.0
"""Seconds that a device has to take the reason why its connection ends."""
_REQUESTS = {Kind.DECLARE, Kind.SUBSCRIBE, Kind.PUBLISH, Kind.END}


class DeviceConnection:
    """Serves one authenticated device. It may publish under its own key, and read its own reply queues."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        tcp: asyncio.Transport,
        upstream: Transport,
        *,
        limits: GatewayLimits,
        budgets: Budgets,
        meter: Meter,
    ) -> None:
        """`upstream` is a connection to the broker with the device's account, and is closed at the end."""
        self.device = upstream.principal
        self._socket = socket
        self._tcp = tcp
        self._upstream = upstream
        self._limits = limits
        self._budgets = budgets
        self._meter = meter
        self._window = SendWindow(limits.frames_in_flight, lambda: limits.in_flight_bytes)
        self._publishing: set[asyncio.Task[None]] = set()
        self._subscriptions: dict[int, Deliveries] = {}
        self._ended: asyncio.Future[LinkError] = asyncio.get_running_loop().create_future()
        # What tells a dead link and a slow reader:
        self._heard = self._sent = 0
        """Messages that came, and that were sent."""
        self._sending = 0
        """Messages that wait for the socket to take them."""
        self._holding_back = False
        """True while nothing is read from the device, since too much of it is in flight."""
        self._last_look = (TcpBytes(), 0, 0)
        self._silent_s = self._stuck_s = self._since_ping_s = 0.0

    def end(self, error: LinkError) -> None:
        """Disconnect the device, and tell it why; the first reason counts."""
        if not self._ended.done():
            self._ended.set_result(error)

    async def run(self) -> None:
        """Serve until either side ends; then nothing is left of it."""
        reading = asyncio.create_task(self._read())
        losing = asyncio.create_task(self._upstream.wait_lost())
        ends: set[asyncio.Future[Any]] = {reading, losing, self._ended}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            await asyncio.wait({reading})
            error = self._why_it_ended(reading)
            if error is not None:
                if self._ended.done() and self._publishing:
                    await asyncio.wait(self._publishing, timeout=self._limits.drain_s)
                await self._say_farewell(error)
        finally:
            tasks: list[asyncio.Task[None]] = [reading, losing, *self._publishing]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(each.close() for each in self._subscriptions.values()))
            await self._upstream.close()

    def _why_it_ended(self, reading: asyncio.Task[None]) -> LinkError | None:
        """None where the device has gone."""
        if self._ended.done():
            return self._ended.result()
        lost = self._upstream.lost
        if isinstance(lost, AccountGone):
            return AccountGone(f"the account {self.device!r} was deleted on the broker")
        if lost is not None:
            return LinkError("the gateway lost its connection to the broker")
        failed = None if reading.cancelled() else reading.exception()
        if isinstance(failed, WireError):
            return LinkRefused(f"the gateway does not understand: {failed.message}")
        if failed is not None and not isinstance(failed, ConnectionError):
            log.error("a connection failed", device=self.device, exc_info=failed)
            return LinkError("the gateway failed on this connection")
        return None

    async def _say_farewell(self, error: LinkError) -> None:
        self._meter.add(metrics.REFUSED, 1, type(error).__name__)
        log.info("device disconnected", device=self.device, why=error.message)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(FAREWELL_S):
                await self._send(wire.failure_packet(Kind.FAILED, 0, error))
                code = WSCloseCode.POLICY_VIOLATION if not error.retriable else WSCloseCode.TRY_AGAIN_LATER
                await self._socket.close(code=code)
        self._tcp.abort()

    # What a device says -----------------------------------------------------------------------------

    async def _read(self) -> None:
        """Raises `WireError` where it is no packet of a device."""
        async for message in self._socket:
            self._heard += 1
            match message.type:
                case WSMsgType.BINARY:
                    await self._handle(
                        wire.parse_packet(message.data, FROM_DEVICE, frame_bytes=self._limits.frame_bytes)
                    )
                case WSMsgType.PING:
                    await self._socket.pong(message.data)
                case WSMsgType.PONG:
                    pass
                case WSMsgType.ERROR:
                    raise WireError(f"a message that is none: {message.data}")
                case _:
                    raise WireError("packets are binary messages")

    async def _handle(self, packet: Packet) -> None:
        if packet.kind in _REQUESTS and not packet.number:
            raise WireError(f"{packet.kind.name} has no number")
        match packet.kind:
            case Kind.PUBLISH:
                await self._begin_to_publish(packet)
            case Kind.ACK:
                deliveries = self._subscriptions.get(packet.number)
                if deliveries is not None:  # it may have ended meanwhile
                    with suppress(LinkError):
                        await deliveries.ack(packet.argument)
            case Kind.DECLARE | Kind.SUBSCRIBE | Kind.END:
                await self._answer(packet)
            case _:
                raise WireError(f"{packet.kind.name} comes once, and first")

    async def _answer(self, packet: Packet) -> None:
        """Carry a request out, and say how it went; one at a time."""
        try:
            match packet.kind:
                case Kind.DECLARE:
                    await self._upstream.declare(reply_slot(self.device, self._slot_of(packet.text)))
                case Kind.SUBSCRIBE:
                    await self._subscribe(packet)
                    return
                case _:
                    deliveries = self._subscriptions.pop(packet.argument, None)
                    if deliveries is not None:
                        await deliveries.close()
        except LinkError as error:
            await self._send(wire.failure_packet(Kind.FAILED, packet.number, error))
        else:
            await self._send(Packet(kind=Kind.DONE, number=packet.number))

    async def _subscribe(self, packet: Packet) -> None:
        self._slot_of(packet.text)
        if packet.number in self._subscriptions or len(self._subscriptions) >= self._limits.subscriptions:
            raise LinkRefused(f"a connection reads {self._limits.subscriptions} queues at most")
        prefetch = min(max(packet.argument, 1), self._limits.prefetch)
        exclusive = bool(packet.flags & wire.EXCLUSIVE)
        subscription = await self._upstream.subscribe(packet.text, prefetch=prefetch, exclusive=exclusive)
        await self._send(Packet(kind=Kind.DONE, number=packet.number))
        self._subscriptions[packet.number] = Deliveries(
            packet.number, subscription, self, self._budgets.held, self._pass_on
        )

    def _slot_of(self, queue: str) -> int:
        """Raises `LinkRefused` where it is not a reply queue of this device's."""
        if not is_reply_slot(queue, self.device):
            raise LinkRefused(
                f"{queue!r} is not a reply queue of {self.device}",
                hint="a device reads its own reply queues, and is named as its account",
            )
        return int(queue.rpartition(".")[2], 16)

    async def _begin_to_publish(self, packet: Packet) -> None:
        """Wait until there is room for the frame: meanwhile nothing more is read from the device."""
        key, _, reply_queue = packet.text.partition("\n")
        try:
            if device_of_key(key) != self.device:
                raise LinkRefused(
                    f"{self.device} may not publish under the key {key!r}",
                    hint="a device publishes under its own name, which is that of its account",
                )
            if reply_queue:
                self._slot_of(reply_queue)
        except LinkError as error:
            await self._send(wire.failure_packet(Kind.FAILED, packet.number, error))
            return
        nbytes = len(packet.body)
        self._holding_back = True
        try:
            await self._window.acquire(nbytes)
            try:
                await self._budgets.acquire(nbytes)
            except BaseException:
                self._window.release(nbytes)
                raise
        finally:
            self._holding_back = False
        task = asyncio.create_task(self._publish(packet, key, reply_queue))
        self._publishing.add(task)
        task.add_done_callback(lambda done: self._published(done, nbytes))

    async def _publish(self, packet: Packet, key: str, reply_queue: str) -> None:
        """Publish the frame and say how it went. Its place is free once the device could take the answer."""
        began_s = time.monotonic()
        answer = Packet(kind=Kind.DONE, number=packet.number)
        try:
            await self._upstream.publish(
                key, packet.body, headers={REPLY_TO: reply_queue} if reply_queue else None
            )
            self._count("up", len(packet.body))
            self._meter.observe(metrics.PUBLISH_SECONDS, time.monotonic() - began_s)
        except LinkError as error:
            answer = wire.failure_packet(Kind.FAILED, packet.number, error)
        await self._send(answer)

    def _published(self, task: asyncio.Task[None], nbytes: int) -> None:
        self._publishing.discard(task)
        self._window.release(nbytes)
        self._budgets.release(nbytes)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a frame could not be published", device=self.device, exc_info=error)
            self.end(LinkError("the gateway failed on this connection"))

    # What a device is told --------------------------------------------------------------------------

    async def _send(self, packet: Packet) -> None:
        await self._send_bytes(wire.encode_packet(packet))

    async def _pass_on(self, packet: bytes, frame_bytes: int) -> None:
        await self._send_bytes(packet)
        if frame_bytes:
            self._count("down", frame_bytes)

    async def _send_bytes(self, packet: bytes) -> None:
        """Return once the socket has room for more; what a device that is gone would be told is dropped."""
        self._sending += 1
        try:
            with suppress(ConnectionError):
                await self._socket.send_bytes(packet)
        finally:
            self._sending -= 1
            self._sent += 1

    def _count(self, direction: str, nbytes: int) -> None:
        self._meter.add(metrics.FRAMES, 1, direction)
        self._meter.add(metrics.BYTES, nbytes, direction)

    # Whether the link lives ---------------------------------------------------------------------------

    async def look(self, every_s: float) -> None:
        """Called every so many seconds: send a sign of life, and end a link that is dead or not read."""
        counted = None if self._tcp.is_closing() else tcp_bytes(self._tcp.get_extra_info("socket"))
        counted = counted or TcpBytes()
        before, heard, sent = self._last_look
        self._last_look = (counted, self._heard, self._sent)
        came = counted.received != before.received or self._heard != heard
        taken = counted.acked >= before.acked + LEAST_BYTES_S * every_s or self._sent != sent
        self._silent_s = 0.0 if came or taken or self._holding_back else self._silent_s + every_s
        self._stuck_s = 0.0 if taken or not self._sending else self._stuck_s + every_s
        if self._silent_s >= self._limits.silence_s:
            self.end(LinkError(f"nothing came from the device for {self._silent_s:.0f} s"))
        elif self._stuck_s >= self._limits.slow_reader_s:
            self.end(LinkDeferred(f"the device took nothing of what waits for it for {self._stuck_s:.0f} s"))
        self._since_ping_s += every_s
        if self._since_ping_s >= self._limits.ping_s and not self._sending and not self._socket.closed:
            self._since_ping_s = 0.0
            with suppress(ConnectionError):
                await self._socket.ping()
