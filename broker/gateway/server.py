"""The gateway's server: who connects, with which account, from which page; and its end.

It keeps nothing: a device may come back to any gateway of the same broker.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import structlog
from aiohttp import WSMsgType, web

from broker.gateway import metrics, wire
from broker.gateway.admission import Admission
from broker.gateway.budgets import Budgets
from broker.gateway.connection import FAREWELL_S, DeviceConnection
from broker.gateway.limits import GatewayLimits
from broker.gateway.listener import CountedServer, Listener
from broker.gateway.pages import Pages
from broker.gateway.upstream import Upstream
from broker.gateway.wire import Kind, Packet
from broker.transport.base import Transport
from broker.transport.topology import IDENTIFIER
from spliteasy.errors import AccountRefused, LinkDeferred, LinkError, LinkRefused, WireError
from spliteasy.observability.meter import SILENT, Meter

log = structlog.get_logger(__name__)

LOOK_S = 1.0
NOT_FOR_DEVICES = frozenset({"guest"})
"""RabbitMQ lets its default account in from the machine that it runs on, and a gateway may run there too."""


class Gateway:
    """Takes devices' WebSockets, and opens the broker for each with the device's own account."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        limits: GatewayLimits | None = None,
        origins: Iterable[str] = (),
        pages: Pages | None = None,
        meter: Meter = SILENT,
    ) -> None:
        """`origins`: of pages that may connect, as `https://host[:port]`. What is no page names none.

        `pages` are served beside the socket, and may connect.
        """
        self.limits = limits or GatewayLimits()
        self.stopping = False
        self.budgets = Budgets(self.limits)
        self.admission = Admission(
            self.limits, turned_away=lambda why: self._meter.add(metrics.REFUSED, 1, why)
        )
        self.server = CountedServer(self._handle)
        self._upstream = upstream
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._pages = pages
        self._meter = meter
        self._connections: set[DeviceConnection] = set()
        self._all_gone = asyncio.Event()

    @property
    def connections(self) -> frozenset[DeviceConnection]:
        """The connections of devices that are served now."""
        return frozenset(self._connections)

    @property
    def devices(self) -> int:
        """The number of connections of devices that are served now."""
        return len(self._connections)

    async def watch(self) -> None:
        """Look after all connections until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            for connection in self.connections:
                await connection.look(LOOK_S)

    async def stop(self) -> None:
        """Let all devices go, and tell them; frames that have come are confirmed first, within `drain_s`."""
        self.stopping = True
        for connection in self._connections:
            connection.end(LinkError("this gateway stops"))
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.limits.drain_s + 2 * FAREWELL_S):
                    await self._all_gone.wait()

    def measure(self) -> None:
        """Set the gauges."""
        self._meter.set(metrics.CONNECTIONS, self.devices, "devices")
        self._meter.set(metrics.CONNECTIONS, self.admission.strangers, "strangers")
        self._meter.set(metrics.IN_FLIGHT_BYTES, self.budgets.in_flight_bytes)
        self._meter.set(metrics.HELD_BYTES, self.budgets.held.total)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request of HTTP: for the socket, or for a file of the page."""
        file = None if self._pages is None or request.path == wire.PATH else self._pages.answer(request)
        if file is not None:
            return file
        refusal = self._refusal(request)
        if refusal is not None:
            self._meter.add(metrics.REFUSED, 1, f"HTTP {refusal.status}")
            return refusal
        socket = web.WebSocketResponse(
            protocols=(wire.PROTOCOL,),
            max_msg_size=self.limits.frame_bytes + wire.OVERHEAD_BYTES,
            compress=False,
            autoping=False,
            timeout=FAREWELL_S,
        )
        await socket.prepare(request)
        try:
            upstream = await self._authenticate(socket)
        except (LinkError, WireError) as error:
            await self._turn_away(socket, error)
            return socket
        await self._serve(request, socket, upstream)
        return socket

    def _refusal(self, request: web.BaseRequest) -> web.Response | None:
        origin = request.headers.get("Origin")
        if origin is not None and not self._may_connect(origin.lower(), request):
            return web.Response(status=403, text="this page's origin may not connect: see --origin\n")
        if request.path != wire.PATH:
            return web.Response(status=404, text=f"devices connect to {wire.PATH}\n")
        if self.stopping:
            return web.Response(status=503, text="this gateway stops\n")
        if not web.WebSocketResponse(protocols=(wire.PROTOCOL,)).can_prepare(request):
            return web.Response(status=426, text="a WebSocket is wanted\n", headers={"Upgrade": "websocket"})
        return None

    def _may_connect(self, origin: str, request: web.BaseRequest) -> bool:
        """Return whether a page of that origin may: one that was named, or this gateway's own."""
        own = (
            self._pages is not None and origin.partition("://")[2] == request.headers.get("Host", "").lower()
        )
        return own or origin in self._origins

    async def _authenticate(self, socket: web.WebSocketResponse) -> Transport:
        """The broker, opened with the account that the device names. How long it may take is the visit's."""
        message = await socket.receive()
        if message.type is not WSMsgType.BINARY:
            raise WireError("a connection begins with HELLO")
        hello = wire.parse_packet(message.data, {Kind.HELLO}, frame_bytes=0)
        account, refused = (
            hello.text,
            AccountRefused(
                "the gateway refused the account",
                hint="check the device's name and password, or enroll it again",
            ),
        )
        if not IDENTIFIER.fullmatch(account) or account in NOT_FOR_DEVICES:
            raise refused
        try:
            return await self._upstream(account, str(hello.body, "utf-8"))
        except (AccountRefused, UnicodeDecodeError):
            raise refused from None
        except LinkRefused as error:
            log.error("the broker can't be used", error=error.message, hint=error.hint)
            raise LinkDeferred("the gateway can't use its broker", hint="see the gateway's log") from None
        except LinkError as error:
            log.warning("the broker can't be reached", device=account, error=error.message)
            kind = LinkDeferred if isinstance(error, LinkDeferred) else LinkError
            raise kind("the gateway can't reach its broker for this account now") from None

    async def _turn_away(self, socket: web.WebSocketResponse, error: LinkError | WireError) -> None:
        self._meter.add(metrics.REFUSED, 1, type(error).__name__)
        told = error if isinstance(error, LinkError) else LinkRefused(error.message)
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                await socket.send_bytes(wire.encode_packet(wire.failure_packet(Kind.FAILED, 0, told)))
                await socket.close()

    async def _serve(
        self, request: web.BaseRequest, socket: web.WebSocketResponse, upstream: Transport
    ) -> None:
        visit = self.server.visits.get(request.protocol)
        tcp = request.transport
        if visit is None or tcp is None or self.stopping:  # meanwhile it went, or this stops
            await upstream.close()
            return
        self.admission.authenticated(visit)
        self._meter.add(metrics.ACCEPTED)
        log.info("device connected", device=upstream.principal, address=visit.address)
        connection = DeviceConnection(
            socket, tcp, upstream, limits=self.limits, budgets=self.budgets, meter=self._meter
        )
        self._connections.add(connection)
        try:
            welcome = Packet(
                kind=Kind.WELCOME, number=self.limits.frame_bytes, argument=round(self.limits.ping_s * 1000)
            )
            with suppress(ConnectionError):
                await socket.send_bytes(wire.encode_packet(welcome))
            await connection.run()
        finally:
            self._connections.discard(connection)
            if not self._connections:
                self._all_gone.set()


@asynccontextmanager
async def serve(
    gateway: Gateway, *, host: str, port: int, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve while entered; gives the port (a free one for 0). Raises UserError where it can't be had."""
    listener = Listener(gateway.server, gateway.admission, tls=tls, handshake_s=gateway.limits.authenticate_s)
    bound = await listener.open(host, port)
    watching = asyncio.create_task(gateway.watch())
    try:
        yield bound
    finally:
        await listener.close()
        await gateway.stop()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await gateway.server.shutdown(FAREWELL_S)
