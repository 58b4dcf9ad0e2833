"""A TCP forwarder before Redis that loses replies, and plays all requests again later."""

from __future__ import annotations

import asyncio
from types import TracebackType


class Proxy:
    """Forwards 127.0.0.1:`port` to another port there, and records what clients send, by connection."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._losing = False
        self.lost = 0
        self.sent: list[bytearray] = []
        self.port = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def lose_next_reply(self) -> None:
        """The next bytes from the server don't arrive: their connection breaks instead."""
        self._losing = True

    async def replay(self) -> None:
        """Send all that was ever sent once more, as copies that were on their way all the time."""
        for recorded in list(self.sent):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            writer.write(bytes(recorded))
            writer.write_eof()
            while await reader.read(1 << 16):
                pass
            writer.close()
            await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        recorded = bytearray()
        self.sent.append(recorded)
        for pump in (self._upward(reader, far_writer, recorded), self._downward(far_reader, writer)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _upward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, recorded: bytearray
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                recorded += data
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def _downward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                if self._losing:
                    self._losing = False
                    self.lost += 1
                    sink.transport.abort()
                    return
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()
