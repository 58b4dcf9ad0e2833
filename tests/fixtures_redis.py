"""Real Redis servers for tests: one for the whole run, flushed for each test, and more on demand."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.nodes.redis_server import RedisServer

StartRedis = Callable[..., RedisServer]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def ask_redis(server: RedisServer, *command: str) -> str:
    """Send one command over a connection of its own; the first line of the answer (or its first bulk)."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        stream = connection.makefile("rwb")
        for words in ([("AUTH", server.password)] if server.password else []) + [command]:
            stream.write(b"*%d\r\n" % len(words))
            stream.writelines(b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words)
            stream.flush()
            line = stream.readline()
            assert not line.startswith(b"-"), line
        return stream.readline().decode().strip() if line.startswith(b"$") else line[1:].decode().strip()


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Starts servers of the test's own: `start_redis(appendfsync="always", …)`. They end with the test."""
    servers: list[RedisServer] = []

    def start(**settings: object) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        server = RedisServer(folder=folder, port=free_port(), **settings)  # type: ignore[arg-type]
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(folder=tmp_path_factory.mktemp("redis"), port=free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(_shared_redis: RedisServer) -> RedisServer:
    """The run's server, empty (`appendfsync everysec`, no password). Leave it running."""
    ask_redis(_shared_redis, "FLUSHALL")
    return _shared_redis


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the run's server, empty."""
    return redis_server.url


@pytest.fixture(scope="session")
def _shared_redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    settings = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    server = RedisServer(folder=tmp_path_factory.mktemp("redis-cluster"), port=free_port(), settings=settings)
    server.start()
    ask_redis(server, "CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    while ask_redis(server, "CLUSTER", "INFO") != "cluster_state:ok":
        assert server.running
    yield server
    server.kill()


@pytest.fixture
def redis_cluster_url(_shared_redis_cluster: RedisServer) -> str:
    """The URL of a cluster of one node, empty: it refuses what would touch two hash slots."""
    ask_redis(_shared_redis_cluster, "FLUSHALL")
    return _shared_redis_cluster.url
