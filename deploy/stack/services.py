"""RabbitMQ and Redis of the local stack: native processes, or containers by Docker compose."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from deploy.nodes import rabbitmq, redis_server
from deploy.nodes.certificates import TlsFiles
from deploy.nodes.native import HOST, is_free
from deploy.nodes.rabbitmq import RabbitNode
from deploy.nodes.redis_server import RedisServer
from deploy.nodes.redis_users import RedisRole, RedisUser
from spliteasy.errors import SplitEasyError, UserError

ACCOUNT = "spliteasy"
RABBITMQ, REDIS = "RabbitMQ", "Redis"
PORT_VARIABLES = {RABBITMQ: "SPLITEASY_AMQP_PORT", REDIS: "SPLITEASY_REDIS_PORT"}
COMPOSE_FILE = Path(__file__).parents[1] / "compose.yaml"
COMPOSE_UP_S = 600
"""Images may have to be pulled."""

DOCKER_ANSWER_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The ports at which the services listen on 127.0.0.1, and their password."""

    amqp_port: int
    redis_port: int
    management_port: int
    """The port of RabbitMQ's HTTP API, where accounts are made."""
    password: str
    worker_password: str = "-"  # noqa: S105
    """The password of the workers' user of the store; it is used with TLS only."""
    tls: TlsFiles | None = None
    """With these files, all of it speaks TLS only, and operator and workers are users of their own."""

    @property
    def broker(self) -> str:
        url = f"{ACCOUNT}:{self.password}@{HOST}:{self.amqp_port}/"
        return f"amqps://{url}?cafile={quote(str(self.tls.ca))}" if self.tls else f"amqp://{url}"

    @property
    def management(self) -> str:
        url = f"{ACCOUNT}:{self.password}@{HOST}:{self.management_port}"
        return f"https://{url}?cafile={quote(str(self.tls.ca))}" if self.tls else f"http://{url}"

    @property
    def store(self) -> str:
        return redis_of(Path(), self).url

    @property
    def worker_store(self) -> str:
        """The store's URL for workers, who may do less there than an operator."""
        server = redis_of(Path(), self)
        return server.url_of(server.users[1]) if server.users else server.url


class Services(Protocol):
    """Broker and store."""

    def start(self) -> None:
        """Start what does not run, and wait until both serve. Raises UserError, SplitEasyError."""
        ...

    def stop(self) -> None:
        """Stop both; their state stays."""
        ...

    def delete(self) -> None:
        """Delete the state of stopped services that is not in the folder."""
        ...

    def running(self) -> Mapping[str, bool]:
        """Return for each service, by name, whether it runs."""
        ...


class NativeServices:
    """Processes of this user, with their state in `folder`."""

    def __init__(self, folder: Path, access: Access) -> None:
        self._servers: dict[str, RabbitNode | RedisServer] = {
            RABBITMQ: RabbitNode(
                folder=folder / "rabbitmq",
                port=access.amqp_port,
                dist_port=free_port(),
                epmd_port=free_port(),
                management_port=access.management_port,
                user=ACCOUNT,
                password=access.password,
                tls=access.tls,
            ),
            REDIS: redis_of(folder / "redis", access),
        }

    def start(self) -> None:
        wanted = [(name, server) for name, server in self._servers.items() if not server.running]
        for name, server in wanted:
            check_port(name, server.port)
        try:
            for name, server in wanted:
                print(f"starting {name} on {HOST}:{server.port}", flush=True)
                server.start()
        except BaseException:
            for _, server in wanted:
                server.stop()
            raise

    def stop(self) -> None:
        for name, server in self._servers.items():
            if server.running:
                print(f"stopping {name}", flush=True)
            server.stop()

    def delete(self) -> None:
        """All of it is in the folder."""

    def running(self) -> Mapping[str, bool]:
        return {name: server.running for name, server in self._servers.items()}


class ComposeServices:
    """Containers, with their state in named volumes."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def start(self) -> None:
        running = self.running()
        for name, port in ((RABBITMQ, self._access.amqp_port), (REDIS, self._access.redis_port)):
            if not running[name]:
                check_port(name, port)
        print("starting RabbitMQ and Redis by docker compose", flush=True)
        self._compose("up", "--detach", "--wait", timeout_s=COMPOSE_UP_S)

    def stop(self) -> None:
        self._compose("down")

    def delete(self) -> None:
        self._compose("down", "--volumes")

    def running(self) -> Mapping[str, bool]:
        up = self._compose("ps", "--services", "--status", "running").split()
        return {RABBITMQ: "rabbitmq" in up, REDIS: "redis" in up}

    def _compose(self, *arguments: str, timeout_s: float = 120) -> str:
        environment = {
            "SPLITEASY_ACCOUNT": ACCOUNT,
            "SPLITEASY_PASSWORD": self._access.password,
            "SPLITEASY_AMQP_PORT": str(self._access.amqp_port),
            "SPLITEASY_REDIS_PORT": str(self._access.redis_port),
            "SPLITEASY_MANAGEMENT_PORT": str(self._access.management_port),
        }
        run = subprocess.run(
            ["docker", "compose", "--file", str(COMPOSE_FILE), *arguments],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if run.returncode:
            reason = " ".join(run.stderr.split())[-500:]
            raise SplitEasyError(f"docker compose {arguments[0]} failed: {reason}")
        return run.stdout


def redis_of(folder: Path, access: Access) -> RedisServer:
    """Return the local stack's Redis server."""
    if access.tls is None:
        return RedisServer(folder=folder, port=access.redis_port, password=access.password)
    operator = RedisUser(name=ACCOUNT, password=access.password, role=RedisRole.OPERATOR)
    worker = RedisUser(name="workers", password=access.worker_password, role=RedisRole.WORKER)
    return RedisServer(folder=folder, port=access.redis_port, users=(operator, worker), tls=access.tls)


def native_missing() -> list[str]:
    """Return which of the native binaries are not installed."""
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        (RABBITMQ, rabbitmq.find_scripts),
        (REDIS, redis_server.find_binary),
    )
    missing = []
    for name, find in checks:
        try:
            find()
        except UserError:
            missing.append(name)
    return missing


def docker_answers() -> bool:
    """Return whether a Docker daemon answers, and knows compose."""
    if shutil.which("docker") is None:
        return False
    for command in (
        ["docker", "compose", "version"],
        ["docker", "version", "--format", "{{.Server.Version}}"],
    ):
        try:
            run = subprocess.run(command, capture_output=True, timeout=DOCKER_ANSWER_S, check=False)
        except subprocess.TimeoutExpired:
            return False
        if run.returncode:
            return False
    return True


def check_port(name: str, port: int) -> None:
    """Raises UserError where something else listens there."""
    if not is_free(port):
        raise UserError(
            f"{name}'s port {port} is in use by something else",
            hint=f"stop that, or choose another port: {PORT_VARIABLES[name]}={port + 1} make up",
        )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
