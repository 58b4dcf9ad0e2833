"""The services of the benchmarks: a RabbitMQ and a Redis of their own, and processes that end with them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.harness.timed_runs import ALLOCATOR, ONE_THREAD, cpu_seconds
from broker.transport.topology import QueueType
from deploy.nodes.native import HOST
from deploy.nodes.rabbitmq import RabbitNode
from deploy.nodes.redis_server import AppendFsync, RedisServer

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """A running broker and store. Deleted at the end, with all they keep."""

    folder: Path
    rabbitmq: RabbitNode
    redis: RedisServer
    vhost: str = "/"
    database: int = 0
    """The database of Redis."""

    @property
    def broker(self) -> str:
        return self.rabbitmq.url(self.vhost)

    def broker_at(self, port: int) -> str:
        """Return the same broker by another port, behind a link."""
        return replace(self.rabbitmq, port=port).url(self.vhost)

    @property
    def store(self) -> str:
        return f"{self.redis.url.removesuffix('0')}{self.database}"

    def pids(self) -> dict[str, int]:
        broker = int((self.rabbitmq.folder / "run/rabbitmq.pid").read_text().split()[0])
        assert self.redis.pid is not None
        return {"broker": broker, "store": self.redis.pid}


@contextmanager
def services(appendfsync: AppendFsync = "everysec", *, management: bool = False) -> Iterator[Services]:
    """Start both, durable, in a new folder. SIGTERM now ends the process with all that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with tempfile.TemporaryDirectory(prefix="spliteasy-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        rabbitmq = RabbitNode(
            folder=folder / "rabbitmq",
            port=free_port(),
            dist_port=free_port(),
            epmd_port=free_port(),
            password=secrets.token_hex(8),
            management_port=free_port() if management else None,
        )
        redis = RedisServer(folder=folder / "redis", port=free_port(), appendfsync=appendfsync)
        stack.callback(rabbitmq.stop)
        rabbitmq.start()
        stack.callback(redis.stop)
        redis.start()
        yield Services(folder=folder, rabbitmq=rabbitmq, redis=redis)


@dataclass(slots=True)
class Contestant:
    """A device process that takes laps, and the processes that serve it."""

    name: str
    device: subprocess.Popen[str]
    others: dict[str, int] = field(default_factory=dict)
    """Process ids by role."""
    ready: Any = None
    """The process's first line, which says that it is ready."""
    seconds: list[list[float]] = field(default_factory=list)
    """The seconds of each step of each lap."""
    told: list[dict[str, Any]] = field(default_factory=list)
    """The reports of the device in each lap (see `benchmarks.harness.timed_runs`)."""
    cpu: list[dict[str, float]] = field(default_factory=list)
    """The processor seconds a step in each lap, by role."""

    def lap(self, steps: int) -> list[float]:
        """Take so many steps; the seconds of each."""
        before = self._cpu()
        told = self.ask(str(steps))
        seconds: list[float] = told["seconds"]
        after = self._cpu()
        self.told.append(told)
        self.seconds.append(seconds)
        self.cpu.append({role: (after[role] - before[role]) / steps for role in after})
        return seconds

    def ask(self, line: str) -> Any:
        """Write a line, read the answer. Raises RuntimeError where the process has ended."""
        assert self.device.stdin is not None
        self.device.stdin.write(line + "\n")
        self.device.stdin.flush()
        return self.read()

    def read(self) -> Any:
        """Return the next answer. Raises RuntimeError where the process has ended."""
        assert self.device.stdout is not None
        line = self.device.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.device.wait()}")
        return json.loads(line)

    def _cpu(self) -> dict[str, float]:
        pids = {"device": self.device.pid, **self.others}
        return {role: cpu_seconds(pid) for role, pid in pids.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulated:
    """A link in a process of its own."""

    url: str
    """The URL that devices connect to."""
    process: subprocess.Popen[str]

    def stats(self) -> Any:
        """Cuts and bytes so far, as `benchmarks.emulator.control` tells them."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Field:
    """The contestants of one run: started one by one, ended together."""

    def __init__(self, services: Services, queues: QueueType = QueueType.CLASSIC) -> None:
        """`queues`: of the workers; classic as in a new local stack."""
        self.services = services
        self.queues = queues
        self.contestants: list[Contestant] = []
        self._stack = ExitStack()

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def spawn(
        self,
        *arguments: str,
        piped: bool = False,
        env: Mapping[str, str] | None = None,
        out: IO[str] | None = None,
    ) -> Any:
        """Start `python ARGUMENTS`; it is ended with the field. `env` wins over what all have alike.

        What it says goes to `out`, or through pipes, or nowhere.
        """
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **ALLOCATOR, **ONE_THREAD, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE if piped else out or subprocess.DEVNULL,
            stderr=None if piped else out or subprocess.DEVNULL,
            text=True,
            process_group=0,
        )
        self._stack.callback(_end, process)
        return process

    def worker(self, *before: str, env: Mapping[str, str] | None = None) -> int:
        """Start a worker of ours (`before`: what runs it, instead of the interpreter itself); its pid."""
        arguments = [*(before or ("-m",)), "spliteasy_cli", "worker", "--trust", "open"]
        arguments += ["--broker", self.services.broker, "--store", self.services.store]
        arguments += ["--queues", self.queues.value]
        pid: int = self.spawn(*arguments, env=env).pid
        return pid

    def emulator(self, profile: str) -> Emulated:
        """Put a link of that profile before the broker."""
        rabbitmq = self.services.rabbitmq
        arguments = ["-m", "benchmarks.emulator", "--profile", profile, "--to", f"{HOST}:{rabbitmq.port}"]
        process = self.spawn(*arguments, "--stdin", piped=True)
        port = json.loads(process.stdout.readline())["ports"][0]
        return Emulated(url=self.services.broker_at(port), process=process)

    def enter(
        self,
        name: str,
        arguments: Sequence[str],
        others: dict[str, int],
        env: Mapping[str, str] | None = None,
    ) -> Contestant:
        """Start a contestant's device and wait until it is ready."""
        contestant = Contestant(name, self.spawn(*arguments, piped=True, env=env), others)
        contestant.ready = contestant.read()
        self.contestants.append(contestant)
        return contestant


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started itself, and left behind
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
