"""The emulator: a TCP proxy that a test or a benchmark commands."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import TracebackType

from benchmarks.emulator.connection import READ_LIMIT_BYTES, Connection, Traffic, bound_buffers, reset
from benchmarks.emulator.line import EPOLL_LATE_S, Direction, Line
from benchmarks.emulator.profiles import PROFILES, Outage, Profile


class LinkEmulator:
    """Forwards what comes to `ports` to the target, as over a link of that profile.

    All connections share the link. Commands act at once, from within the event loop. Leaving the context
    resets all connections. What is not emulated: loss that TCP repairs, and its slow start.
    """

    def __init__(
        self,
        target: tuple[str, int],
        profile: Profile = PROFILES["open"],
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        ports: int = 1,
        seed: int = 0,
        timer_late_s: float = EPOLL_LATE_S,
    ) -> None:
        """`listen`: port 0 picks free ones; else `ports` consecutive ones. `seed`: of the jitter.

        `timer_late_s`: how late this event loop's timers fire on average.
        """
        self._target, self._listen, self._port_count = target, listen, ports
        self._lines = {
            direction: Line(seed=2 * seed + index, timer_late_s=timer_late_s)
            for index, direction in enumerate(Direction)
        }
        self._profile = profile
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._outages: asyncio.Task[None] | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._refused, self._refused_until = False, 0.0
        self._only_port: int | None = None
        self.ports: tuple[int, ...] = ()
        """The ports that the device connects to."""
        self.connections: list[Connection] = []
        """All so far, oldest first; `open` tells those that are."""
        self.cuts = 0

    async def __aenter__(self) -> LinkEmulator:
        host, first = self._listen
        for index in range(self._port_count):
            raw = socket.create_server((host, first + index if first else 0))
            bound_buffers(raw)
            self._servers.append(await asyncio.start_server(self._accept, sock=raw, limit=READ_LIMIT_BYTES))
        self.ports = tuple(server.sockets[0].getsockname()[1] for server in self._servers)
        self.set_profile(self._profile)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        for timer in self._timers:
            timer.cancel()
        if self._outages is not None:
            self._outages.cancel()
        self._reset_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        return self.ports[0]

    @property
    def refusing(self) -> bool:
        """Return whether new connections are reset now."""
        return self._refused or asyncio.get_running_loop().time() < self._refused_until

    @property
    def profile(self) -> Profile:
        return self._profile

    def traffic(self, direction: Direction) -> Traffic:
        """Return the traffic of all connections so far."""
        each = [connection.traffic[direction] for connection in self.connections]
        return Traffic(sum(one.taken for one in each), sum(one.delivered for one in each))

    def set_profile(self, profile: Profile) -> None:
        """Set the profile for bytes that enter the link from now on; its outages start over."""
        self._profile = profile
        up, down = self._lines[Direction.UP], self._lines[Direction.DOWN]
        up.rate, down.rate = profile.up_bytes_s, profile.down_bytes_s
        for line in (up, down):
            line.latency_s, line.jitter_s = profile.latency_s, profile.jitter_s
        if self._outages is not None:
            self._outages.cancel()
            self.restore()
            self.resume()
        self._outages = (
            self._keep(asyncio.create_task(self._break(profile.outage))) if profile.outage else None
        )

    def cut(
        self, direction: Direction | None = None, *, after_s: float = 0.0, for_s: float | None = None
    ) -> None:
        """Reset all open connections; `for_s`: and refuse new ones for so long.

        With a direction: what is on its way there and all that follows on the open connections vanishes,
        without either end being told. `after_s`: do it then.
        """
        if after_s > 0:
            self._later(after_s, lambda: self.cut(direction, for_s=for_s))
            return
        self.cuts += 1
        if direction is None:
            self._reset_all()
        for connection in self.connections:
            if direction is not None and connection.open:
                connection.lose(direction)
        if for_s is not None:
            self._refused_until = asyncio.get_running_loop().time() + for_s

    def cut_after(self, count: int, direction: Direction, *, for_s: float | None = None) -> None:
        """`cut` as soon as exactly `count` more bytes have arrived in that direction."""
        self._lines[direction].limit(count, lambda: self.cut(for_s=for_s))

    def refuse(self) -> None:
        """Reset every new connection, until `restore` is called."""
        self._refused = True

    def restore(self) -> None:
        """Let new connections through again."""
        self._refused, self._refused_until = False, 0.0

    def stall(self, direction: Direction | None = None) -> None:
        """Let nothing through (in that direction), and close nothing, until `resume`."""
        for line in self._chosen(direction):
            line.stall()

    def resume(self, direction: Direction | None = None) -> None:
        for line in self._chosen(direction):
            line.resume()

    def use_port(self, port: int) -> None:
        """Be reachable at this one of `ports` only: connections of the others are reset and refused."""
        if port not in self.ports:
            raise ValueError(f"{port} is not one of {self.ports}")
        self._only_port = port
        for connection in self.connections:
            if connection.open and connection.port != port:
                connection.reset()

    def lead_to(self, target: tuple[str, int]) -> None:
        """Connections from now on go to that server instead, as behind a load balancer."""
        self._target = target

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = writer.get_extra_info("sockname")[1]
        if self.refusing or self._only_port not in (None, port):
            reset(writer)
            return
        connection = Connection(port, self._lines)
        self.connections.append(connection)
        self._keep(connection.start(reader, writer, self._target))

    async def _break(self, outage: Outage) -> None:
        while True:
            await asyncio.sleep(outage.every_s)
            if outage.kind == "cut":
                self.cut()
                self.refuse()
            else:
                self.stall()
            await asyncio.sleep(outage.for_s)
            self.restore()
            self.resume()

    def _chosen(self, direction: Direction | None) -> list[Line]:
        return [line for key, line in self._lines.items() if direction in (None, key)]

    def _reset_all(self) -> None:
        for connection in self.connections:
            if connection.open:
                connection.reset()

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(delay_s, call))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
