"""The sockets under a transport's AMQP connections: whether bytes still come, and whether bytes still go.

AMQP's own signs of life are whole frames: on a slow link one takes longer than a heartbeat. Bytes tell more,
and sooner. They are looked at in turns of the event loop's own time, so that a process that was stopped, or
computed for long, takes nobody for dead.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiormq
from aiormq.connection import TransportFactory
from yarl import URL

from broker.transport.socket_progress import LEAST_BYTES_S, tcp_bytes


class AmqpConnection(aiormq.Connection):
    """Judged by its `Wire` alone: aiormq would give up a connection on which a frame takes long."""

    HEARTBEAT_GRACE_MULTIPLIER = 1_000_000

    @staticmethod
    async def _rpc(
        request: Any, writer: asyncio.StreamWriter, frame_receiver: Any, wait_response: bool = True
    ) -> Any:
        """See aiormq, which tells of the broker's no to Connection.Open only that it was unexpected."""
        if isinstance(request, aiormq.spec.Connection.Open):
            frame_receiver = _Answers(frame_receiver)
        return await aiormq.Connection._rpc(request, writer, frame_receiver, wait_response)


class _Answers:
    """The frames of a receiver; a refusal is raised with the broker's own words."""

    def __init__(self, receiver: Any) -> None:
        self._receiver = receiver

    async def get_frame(self) -> Any:
        weight, channel, frame = await self._receiver.get_frame()
        if isinstance(frame, aiormq.spec.Connection.Close):
            raise aiormq.exceptions.ConnectionClosed(frame.reply_code, frame.reply_text)
        return weight, channel, frame


class _Reader(asyncio.StreamReader):
    """Counts what arrives."""

    received = 0

    def feed_data(self, data: Any) -> None:
        self.received += len(data)
        super().feed_data(data)


class Wire(TransportFactory):
    """Makes the socket of one connection, within `connect_s`, and watches it."""

    def __init__(self, connect_s: float) -> None:
        self.silent_s = 0.0
        """Nothing has come for this long, as of the last look."""
        self._connect_s = connect_s
        self._reader: _Reader | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._received = self._acked = 0

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Do as aiormq's method does. Raises TimeoutError, or AMQPConnectionError for system and TLS."""
        loop = asyncio.get_running_loop()
        context = options.pop("ssl_context_provider")
        limit: int = options.pop("limit")
        reader = _Reader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        tls = await context.get_context() if url.scheme == "amqps" else None
        host, port = str(url.host), int(url.port or 0)
        try:
            async with asyncio.timeout(self._connect_s):
                transport, _ = await loop.create_connection(lambda: protocol, host, port, ssl=tls)
        except TimeoutError:
            raise
        except OSError as error:
            raise aiormq.exceptions.AMQPConnectionError(*error.args) from error
        self._reader, self._transport = reader, transport
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def look(self, every_s: float) -> bool:
        """Take notice of what came since the last look, `every_s` ago; whether an upload went on."""
        reader = self._reader
        if reader is None:
            return False
        counted = None
        if self._transport is not None and not self._transport.is_closing():
            counted = tcp_bytes(self._transport.get_extra_info("socket"))
        received, acked = reader.received, counted.acked if counted else 0
        self.silent_s = 0.0 if received != self._received else self.silent_s + every_s
        going_on = acked >= self._acked + LEAST_BYTES_S * every_s
        self._received, self._acked = received, acked
        return going_on

    def abort(self) -> None:
        """Let go of the socket at once: what waits for it to take bytes ends."""
        if self._transport is not None:
            self._transport.abort()
