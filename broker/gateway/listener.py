"""The gateway's listening socket: connections are counted before any byte of theirs is looked at."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from broker.gateway.admission import Admission, Visit
from spliteasy.errors import UserError

log = structlog.get_logger(__name__)

BACKLOG = 1024
LACK_PAUSE_S = 0.5
"""Seconds without accepting, after this process had no file descriptor for a connection."""


class CountedServer(web.Server):
    """aiohttp's server without routes; it tells when a connection is closed."""

    def __init__(self, handler: Any) -> None:
        super().__init__(handler, access_log=None)
        self.visits: dict[RequestHandler, Visit] = {}

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        visit = self.visits.pop(handler, None)
        if visit is not None:
            visit.leave()


class Listener:
    """Accepts connections as long as it is open."""

    def __init__(
        self, server: CountedServer, admission: Admission, *, tls: ssl.SSLContext | None, handshake_s: float
    ) -> None:
        self._server = server
        self._admission = admission
        self._tls = tls
        self._handshake_s = handshake_s
        self._socket: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._greetings: set[asyncio.Task[None]] = set()

    async def open(self, host: str, port: int) -> int:
        """Listen; returns the port (a free one for 0). Raises UserError where it can't be had."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            listening = socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hint = "name another --listen"
            raise UserError(f"can't listen on {host}:{port}: {reason}", hint=hint) from None
        listening.setblocking(False)
        self._socket = listening
        self._accepting = asyncio.create_task(self._accept(listening))
        bound: int = listening.getsockname()[1]
        return bound

    async def close(self) -> None:
        """Accept nobody more; connections that stand stay."""
        tasks = [*self._greetings, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listening)
            except OSError as error:  # no descriptors, or the other side is gone already
                log.warning("can't accept a connection", error=str(error))
                await asyncio.sleep(LACK_PAUSE_S)
                continue
            visit = self._admission.enter(str(address[0]))
            if visit is None:
                connection.close()
                continue
            greeting = asyncio.create_task(self._greet(connection, visit))
            visit.greeting = greeting
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, connection: socket.socket, visit: Visit) -> None:
        """Set the connection up, and leave it to the server."""

        def handler() -> RequestHandler:
            made = self._server()
            self._server.visits[made] = visit
            return made

        connection.setblocking(False)
        limit_s = self._handshake_s if self._tls is not None else None
        try:
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                handler, connection, ssl=self._tls, ssl_handshake_timeout=limit_s
            )
            visit.transport = transport
        except (OSError, asyncio.CancelledError):
            with suppress(OSError):
                connection.close()
            self._forget(visit)
            if visit.greeting is not None and visit.greeting.cancelling():
                raise

    def _forget(self, visit: Visit) -> None:
        """The connection never stood."""
        for handler, other in list(self._server.visits.items()):
            if other is visit:
                del self._server.visits[handler]
        visit.leave()
