"""A Redis that says "not now", in every way that it knows: at the first connection, and later."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from broker.transport.patience import tried_for_a_while
from deploy.nodes.certificates import make_certificates
from deploy.nodes.redis_server import RedisServer
from server_worker.store import StoredJob, open_store
from spliteasy.errors import StoreDeferred, StoreFull, UserError
from tests.fixtures_redis import StartRedis, ask_redis, free_port
from tests.store.steps import SESSION, begin

pytestmark = pytest.mark.redis
SLOWLY = {"enable-debug-command": "yes", "loading-process-events-interval-bytes": "1024"}


def load_slowly(server: RedisServer) -> socket.socket:
    """Let it load its data again, a tenth of a second a key, until `load_fast`; who asked waits for it."""
    ask_redis(server, "CONFIG", "SET", "key-load-delay", "100000")
    asking = socket.create_connection(("127.0.0.1", server.port))
    asking.sendall(b"*2\r\n$5\r\nDEBUG\r\n$6\r\nRELOAD\r\n")
    while "loading:1" not in persistence(server):
        assert server.running
    return asking


def load_fast(server: RedisServer, asking: socket.socket) -> None:
    ask_redis(server, "CONFIG", "SET", "key-load-delay", "0")
    asking.settimeout(30)
    assert asking.recv(16).startswith(b"+OK")


def persistence(server: RedisServer) -> str:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"*2\r\n$4\r\nINFO\r\n$11\r\npersistence\r\n")
        return connection.recv(65536).decode()


async def test_a_redis_that_loads_its_data_is_waited_for(start_redis: StartRedis) -> None:
    server = start_redis(settings=SLOWLY)
    ask_redis(server, "DEBUG", "POPULATE", "2000", "other", "200")
    told: list[str] = []
    with closing(await asyncio.to_thread(load_slowly, server)) as asking:
        with pytest.raises(StoreDeferred, match="loading its data"):
            await open_store(server.url)

        def ready(text: str) -> None:
            told.append(text)
            load_fast(server, asking)

        async with asyncio.timeout(30):
            store = await tried_for_a_while(lambda: open_store(server.url), tell=ready)
    assert told
    assert "loading" in told[0]
    with closing(await asyncio.to_thread(load_slowly, server)) as asking:
        with pytest.raises(StoreDeferred, match=r"can't serve now.*loading"):
            await begin(store)
        await asyncio.to_thread(load_fast, server, asking)
    assert (await begin(store)).committed == 0
    await store.close()


async def test_a_replica_whose_primary_died_is_waited_for(start_redis: StartRedis) -> None:
    dead = f"127.0.0.1 {free_port()}"
    server = start_redis(settings={"replica-serve-stale-data": "no"})
    store = await open_store(server.url)
    assert (await begin(store)).committed == 0
    ask_redis(server, "REPLICAOF", *dead.split())
    for call in (lambda: begin(store), lambda: store.session(SESSION), store.sessions):
        with pytest.raises(StoreDeferred, match="can't serve now"):
            await call()
    with pytest.raises(StoreDeferred, match="is a replica"):
        await open_store(server.url)
    told: list[str] = []

    def promote(text: str) -> None:
        told.append(text)
        ask_redis(server, "REPLICAOF", "NO", "ONE")

    async with asyncio.timeout(30):
        other = await tried_for_a_while(lambda: open_store(server.url), tell=promote)
    assert len(told) == 1
    for opened in (store, other):
        assert await opened.session(SESSION) is not None
        await opened.close()


async def test_a_redis_that_is_full_from_the_first_is_opened_and_refuses_writes_alone(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    ask_redis(server, "CONFIG", "SET", "maxmemory", "1")
    store = await open_store(server.url)
    assert await store.sessions() == []
    with pytest.raises(StoreFull, match="has no room") as caught:
        await begin(store)
    assert "maxmemory" in (caught.value.hint or "")
    with pytest.raises(StoreFull):
        await store.put_job(StoredJob(name="digits", digest="0" * 64, manifest=b"{}", parts={"head/x": b"x"}))
    ask_redis(server, "CONFIG", "SET", "maxmemory", "0")
    assert (await begin(store)).committed == 0
    await store.close()


@asynccontextmanager
async def hanging_up(after: int, saying: bytes = b"") -> AsyncIterator[int]:
    """A port where whoever connects is read so many bytes of, is told something, and is hung up on."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if after:
            await reader.read(after)
        writer.write(saying)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


HALF_A_SERVER_HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"
BROKEN_OFF = [(0, b""), (5, b""), (4096, b""), (4096, HALF_A_SERVER_HELLO)]


@pytest.mark.parametrize(("after", "saying"), BROKEN_OFF)
async def test_a_tls_handshake_that_breaks_off_can_pass(after: int, saying: bytes) -> None:
    async with hanging_up(after, saying) as port:
        with pytest.raises(StoreDeferred, match="broke the connection off") as caught:
            await open_store(f"rediss://:secret@127.0.0.1:{port}/0")
    assert "secret" not in str(caught.value)


async def test_a_certificate_of_another_authority_is_final(start_redis: StartRedis, tmp_path: Path) -> None:
    mine, other = (make_certificates(tmp_path / name) for name in ("mine", "other"))
    server = start_redis(tls=mine)
    await (await open_store(server.url)).close()
    with pytest.raises(UserError, match="not trusted") as caught:
        await open_store(f"rediss://127.0.0.1:{server.port}/0?ssl_ca_certs={other.ca}")
    assert "ssl_ca_certs" in (caught.value.hint or "")
