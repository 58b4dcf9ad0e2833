"""All that a training needs, on loopback: RabbitMQ, Redis, workers; started and ended by us."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.emulator import LinkEmulator
from broker.transport.topology import QueueType
from deploy.nodes.rabbitmq import RabbitNode
from deploy.nodes.redis_server import AppendFsync, RedisServer
from server_worker.store import open_store
from spliteasy_cli.commands.submit import store_job
from tests.chaos import toy
from tests.chaos.processes import Process
from tests.chaos.record import Record
from tests.fixtures_rabbitmq import free_ports

T = TypeVar("T")
HOST = "127.0.0.1"
PASSWORD = "chaos-only"
SERVES_S = 90.0
DRAIN_S = 5.0


class Rabbit(Protocol):
    """The calls that a RabbitMQ of the stack answers: a node, or several."""

    @property
    def port(self) -> int: ...

    @property
    def running(self) -> bool: ...

    @property
    def pid(self) -> int | None: ...

    def url(self, vhost: str = ...) -> str: ...

    def start(self, timeout_s: float = ...) -> None: ...

    def kill(self) -> None: ...

    def sync_queues(self) -> None: ...

    def ctl(self, *arguments: str, timeout_s: float = ...) -> str: ...


@dataclass(slots=True)
class WorkerSlot:
    """A place for a worker: its process comes and goes, its link to the broker stays."""

    number: int
    link: LinkEmulator
    process: Process | None = None
    serving: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.code is None


class Stack:
    """`async with Stack(folder, …) as stack`: all runs, and nothing is left behind."""

    def __init__(
        self,
        folder: Path,
        record: Record,
        *,
        workers: int,
        appendfsync: AppendFsync = "everysec",
        rabbit: Rabbit | None = None,
        queues: QueueType = QueueType.QUORUM,
        redis: RedisServer | None = None,
    ) -> None:
        self.folder = folder
        self.record = record
        amqp, dist, epmd, redis_port = free_ports(4)
        self.rabbit: Rabbit = rabbit or RabbitNode(
            folder=folder / "rabbitmq", port=amqp, dist_port=dist, epmd_port=epmd, password=PASSWORD
        )
        self.redis = redis or RedisServer(
            folder=folder / "redis",
            port=redis_port,
            appendfsync=appendfsync,
            # One growing file: cutting off its end is what losing the last writes looks like.
            settings={"auto-aof-rewrite-percentage": "0"},
        )
        self.queues = queues
        self.workers: list[WorkerSlot] = []
        self.worker_count = workers
        self.links: list[LinkEmulator] = []
        self._processes: list[Process] = []
        self._threads: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Stack:
        try:
            await asyncio.gather(self.thread(self.rabbit.start), self.thread(self.redis.start))
            await self.submit(*toy.JOBS, *toy.FLEETS)
            for _ in range(self.worker_count):
                await self.add_worker()
            await asyncio.gather(*(self.start_worker(slot) for slot in self.workers))
            await self.thread(self.rabbit.sync_queues)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End all at once, whatever state it is in."""
        self._kill_servers()
        if self._threads:  # what still starts there notices that its process is gone
            await asyncio.wait(self._threads)
        self._kill_servers()
        await asyncio.gather(*(process.kill() for process in self._processes))
        for link in self.links:
            await link.__aexit__(None, None, None)

    def _kill_servers(self) -> None:
        for server in (self.rabbit, self.redis):
            if server.running:
                server.kill()

    async def thread(self, run: Callable[[], T]) -> T:
        """Run what blocks in a thread; `stop` waits for it even if the caller is cancelled."""
        task: asyncio.Task[T] = asyncio.create_task(asyncio.to_thread(run))
        self._threads.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Forget a thread that has ended.

        Where its caller was cancelled, nobody else looks at its error, and asyncio would complain of that.
        """
        self._threads.discard(task)
        if not task.cancelled():
            task.exception()

    async def submit(self, *names: str) -> None:
        """Store the jobs of these names, as `spliteasy submit` does."""
        store = await open_store(self.redis.url)
        try:
            for name in names:
                await store_job(store, await self.thread(lambda name=name: toy.job(name)))  # type: ignore[misc]
        finally:
            await store.close()

    async def link(self, *, ports: int = 1, seed: int = 0) -> LinkEmulator:
        """A link to the broker, ended with the stack."""
        link = LinkEmulator((HOST, self.rabbit.port), ports=ports, seed=seed)
        await link.__aenter__()
        self.links.append(link)
        return link

    def broker_url(self, port: int) -> str:
        """The broker's URL by way of a link's port."""
        return self.rabbit.url().replace(f":{self.rabbit.port}/", f":{port}/")

    async def spliteasy(
        self,
        *arguments: object,
        name: str,
        on_line: Callable[[dict[str, object]], None] = lambda _: None,
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a command; it ends with the stack at the latest."""
        process = await Process.start(
            arguments, environment=environment or {}, log=self.folder / f"{name}.log", on_line=on_line
        )
        self._processes = [each for each in self._processes if each.code is None] + [process]
        return process

    # Workers ---------------------------------------------------------------------------------------

    async def add_worker(self) -> WorkerSlot:
        """A place for one more; nothing runs there yet."""
        slot = WorkerSlot(len(self.workers), await self.link())
        self.workers.append(slot)
        return slot

    async def start_worker(self, slot: WorkerSlot) -> None:
        """Start it and wait until it serves; as a supervisor would, again where it can't reach the others."""
        deadline = asyncio.get_running_loop().time() + SERVES_S
        while True:
            process = await self._spawn_worker(slot)
            serving = asyncio.create_task(slot.serving.wait())
            ended = asyncio.create_task(process.wait())
            left_s = deadline - asyncio.get_running_loop().time()
            await asyncio.wait({serving, ended}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            serving.cancel()
            ended.cancel()
            if slot.serving.is_set() and process.code is None:
                return
            said = f"worker {slot.number} does not serve: {list(process.last_lines)}"
            assert asyncio.get_running_loop().time() < deadline, said
            self.record.note(said)

    async def _spawn_worker(self, slot: WorkerSlot) -> Process:
        def said(line: dict[str, object]) -> None:
            if line.get("event") == "serving":
                slot.serving.set()
            self.record.worker_said(slot.number, line)

        slot.serving.clear()
        slot.process = await self.spliteasy(
            *("worker", "--name", f"worker-{slot.number}-{len(self._processes)}"),
            *("--trust", "open", "--drain-s", DRAIN_S, "--queues", self.queues.value),
            name=f"worker-{slot.number}",
            on_line=said,
            environment={
                "SPLITEASY_BROKER": self.broker_url(slot.link.port),
                "SPLITEASY_STORE": self.redis.url,
            },
        )
        return slot.process

    async def drain_worker(self, slot: WorkerSlot) -> None:
        """SIGTERM: it must end well, and soon."""
        process = slot.process
        assert process is not None
        process.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(DRAIN_S + 40.0):
                code = await process.wait()
        except TimeoutError:
            self.record.violate(f"worker {slot.number} did not end after SIGTERM")
            await process.kill()
            return
        if code != 0:
            self.record.violate(
                f"worker {slot.number} ended with {code} after SIGTERM: {list(process.last_lines)}"
            )
