"""The two ends of a link: a server that tests look into, and streams that close themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

DEADLINE_S = 20.0
"""A deadline that is reached only where a test fails."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Server:
    """Accepts connections and hands them to the test."""

    address: tuple[str, int]
    accepted: asyncio.Queue[Stream] = field(default_factory=asyncio.Queue)

    async def accept(self) -> Stream:
        async with asyncio.timeout(DEADLINE_S):
            return await self.accepted.get()


@asynccontextmanager
async def serving(limit: int = 1 << 16) -> AsyncIterator[Server]:
    streams: list[Stream] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        streams.append((reader, writer))
        server.accepted.put_nowait((reader, writer))

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, limit=limit)
    server = Server(listening.sockets[0].getsockname())
    try:
        yield server
    finally:
        listening.close()
        for _, writer in streams:
            writer.transport.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.readexactly(count)


async def read_all(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        return await reader.read()


async def read_until_reset(reader: asyncio.StreamReader) -> bytes:
    """All bytes before a reset; `EOFError` where the stream ends in good order."""
    received = bytearray()
    async with asyncio.timeout(DEADLINE_S):
        try:
            while data := await reader.read(1 << 16):
                received += data
        except ConnectionResetError:
            return bytes(received)
    raise EOFError


async def is_reset(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of the stream; whether it was a reset."""
    try:
        assert await read_all(reader) == b""
    except ConnectionResetError:
        return True
    return False


async def is_silent(reader: asyncio.StreamReader, for_s: float = 0.05) -> bool:
    """Return whether neither bytes nor an end arrive within that time."""
    try:
        async with asyncio.timeout(for_s):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def reachable(port: int) -> bool:
    """Return whether a connection to that port lasts long enough to carry the server's greeting."""
    async with connected(port) as (reader, _):
        try:
            return await read(reader, 1) == b"!"
        except (OSError, asyncio.IncompleteReadError):
            return False
