"""One connection through the link: two pipes, and what each end gets to know when the other is lost."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from benchmarks.emulator.line import Direction, Line

_BUFFER_BYTES = 1 << 17
READ_LIMIT_BYTES = 1 << 16
_RESET_ON_CLOSE, _END_ON_CLOSE = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


@dataclass(slots=True)
class Traffic:
    """Bytes of one direction."""

    taken: int = 0
    """The bytes that were read from the sender."""
    delivered: int = 0
    """Handed to the receiver's socket."""


class Pipe:
    """Carries bytes from a socket over a line to another socket, with backpressure."""

    def __init__(self, line: Line, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._line, self._source, self._sink = line, source, sink
        self._flying: deque[tuple[float, bytes]] = deque()
        self._flying_bytes = 0
        self._changed = asyncio.Event()
        self.traffic = Traffic()
        self.lost = False
        """Cut in this direction: bytes vanish, the receiver hears nothing more, not even an end."""

    def lose(self) -> None:
        self.lost = True
        self._flying.clear()
        self._changed.set()

    async def take(self) -> None:
        """Read from the source until its end. Raises `OSError` where the source was reset."""
        while data := await self._source.read(self._line.piece_bytes):
            self.traffic.taken += len(data)
            if not self.lost:
                await self._put(await self._line.enter(len(data)), data)
        if not self.lost:
            await self._put(await self._line.enter(0), b"")

    async def deliver(self) -> None:
        """Write what has arrived to the sink, until the end. Raises `OSError` where the sink was reset."""
        while True:
            await self._until(lambda: self.lost or bool(self._flying))
            if not self.lost:
                await self._line.arrive(self._flying[0][0])
            if self.lost:
                return
            _, data = self._flying.popleft()
            self._flying_bytes -= len(data)
            self._changed.set()
            if not data:
                self._sink.write_eof()
                return
            passed = self._line.allow(len(data))
            self._sink.write(data[:passed])
            await self._sink.drain()
            self.traffic.delivered += passed
            self._line.used_up()

    async def _put(self, due: float, data: bytes) -> None:
        await self._until(lambda: self.lost or self._flying_bytes < self._line.window_bytes)
        self._flying.append((due, data))
        self._flying_bytes += len(data)
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()


class Connection:
    """A device's connection and the one that represents it at the server."""

    def __init__(self, port: int, lines: dict[Direction, Line]) -> None:
        self.port = port
        """The emulator's port that the device came to."""
        self.traffic = {direction: Traffic() for direction in Direction}
        self._lines = lines
        self._pipes: dict[Direction, Pipe] = {}
        self._lost: set[Direction] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]
    ) -> asyncio.Task[None]:
        """Carry bytes until both ends are done."""
        self._writers.append(writer)
        self._task = asyncio.create_task(self._run(reader, writer, target))
        return self._task

    def reset(self) -> None:
        """Both ends learn at once that the connection is gone; what is on its way is lost."""
        for writer in self._writers:
            reset(writer)
        if self._task is not None:
            self._task.cancel()

    def lose(self, direction: Direction) -> None:
        """Let nothing through in that direction any more, without a word to either end."""
        self._lost.add(direction)
        if direction in self._pipes:
            self._pipes[direction].lose()

    async def _run(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: tuple[str, int]
    ) -> None:
        # The kernel has answered the device's SYN at once; the link would have taken a round trip.
        await asyncio.sleep(sum(line.latency_s for line in self._lines.values()))
        try:
            far_reader, far_writer = await _connect(target)
        except OSError:
            reset(writer)
            return
        self._writers.append(far_writer)
        for each in self._writers:
            # `drain` then waits until the kernel has it all.
            each.transport.set_write_buffer_limits(0)
        up = self._pipes[Direction.UP] = Pipe(self._lines[Direction.UP], reader, far_writer)
        down = self._pipes[Direction.DOWN] = Pipe(self._lines[Direction.DOWN], far_reader, writer)
        for direction in self._lost:  # before there was a pipe
            self._pipes[direction].lose()
        self.traffic = {Direction.UP: up.traffic, Direction.DOWN: down.traffic}
        await asyncio.gather(
            self._guard(up.take(), broken=down, tells=up),
            self._guard(up.deliver(), broken=up, tells=down),
            self._guard(down.take(), broken=up, tells=down),
            self._guard(down.deliver(), broken=down, tells=up),
        )
        for each in self._writers:
            each.close()

    async def _guard(self, carrying: Coroutine[Any, Any, None], *, broken: Pipe, tells: Pipe) -> None:
        """Watch for an end that goes away: `broken` leads to it, and `tells` would tell the other end so."""
        try:
            await carrying
        except OSError:
            broken.lose()
            if not tells.lost:
                self.reset()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()


async def _connect(target: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    raw = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
    try:
        raw.setblocking(False)
        bound_buffers(raw)
        # A cut may come before the streams are there to be reset.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        await asyncio.get_running_loop().sock_connect(raw, target)
        streams = await asyncio.open_connection(sock=raw, limit=READ_LIMIT_BYTES)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _END_ON_CLOSE)
        return streams
    except BaseException:
        raw.close()
        raise


def bound_buffers(raw: socket.socket) -> None:
    """Keep bytes in the emulated link, not in the kernel's buffers around it.

    To be done before connecting or accepting: a window that shrinks later makes TCP stutter.
    """
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
