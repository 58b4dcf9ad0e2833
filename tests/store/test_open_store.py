"""`open_store`: which URL opens what, and one clear error for each that can't."""

from __future__ import annotations

import asyncio
import math
import socket
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.transport.patience import tried_for_a_while
from deploy.nodes.redis_server import RedisServer
from server_worker.store import SqliteStore, WorkerInfo, open_store
from server_worker.store.redis import link
from spliteasy.errors import StoreDeferred, StoreUnavailable, UserError
from tests.fixtures_redis import StartRedis, ask_redis, free_port
from tests.store.steps import begin

SECRET = "hunter/2@home"
ENCODED = "hunter%2F2%40home"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("mysql://host/db", "'mysql', which is no store"),
        ("", "names no store"),
        ("store.db", "names no store"),
        ("sqlite://folder/store.db", "names a host"),
        ("redis://127.0.0.1:port", "the store URL is wrong"),
        ("redis://127.0.0.1:99999", "the store URL is wrong"),
        ("redis://127.0.0.1/one", "the store URL is wrong"),
        ("redis://127.0.0.1?loss_window_s=soon", "loss_window_s=soon"),
        ("redis://127.0.0.1?timeout_s=-1", "timeout_s=-1"),
        ("redis://127.0.0.1?no_such_option=1", "the store URL is wrong"),
    ],
)
async def test_a_url_that_cannot_be_right(url: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        await open_store(url)
    assert complaint in caught.value.message
    assert caught.value.hint


async def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailable, match=str(port)) as caught:
        await open_store(f"redis://:{ENCODED}@127.0.0.1:{port}")
    assert "make up" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert ENCODED not in str(caught.value)


@pytest.mark.redis
async def test_something_else_than_tls_answers(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(StoreUnavailable):
        await open_store(redis_url.replace("redis://", "rediss://"))


# Redis --------------------------------------------------------------------------------------------


@pytest.mark.redis
async def test_the_right_password_opens_and_a_wrong_one_is_not_told(start_redis: StartRedis) -> None:
    server = start_redis(password=SECRET)
    store = await open_store(server.url)
    assert (await begin(store)).committed == 0
    await store.close()
    for account in ("", ":wrong@", "nobody:wrong@"):
        with pytest.raises(UserError, match="credentials") as caught:
            await open_store(f"redis://{account}127.0.0.1:{server.port}/0")
        assert str(server.port) in caught.value.message
        assert "wrong" not in caught.value.message.replace("WRONGPASS", "")


@pytest.mark.redis
@pytest.mark.parametrize(
    ("appendfsync", "window_s"), [("always", 0.0), ("everysec", 2.0), ("no", math.inf), ("off", math.inf)]
)
async def test_the_loss_window_is_what_the_server_is_set_to(
    start_redis: StartRedis, appendfsync: str, window_s: float
) -> None:
    store = await open_store(start_redis(appendfsync=appendfsync).url)
    assert store.loss_window_s == window_s
    await store.close()


@pytest.mark.redis
async def test_a_declared_loss_window_wins(start_redis: StartRedis) -> None:
    """Only the operator of a server with a replica knows what a failover may lose."""
    store = await open_store(f"{start_redis(appendfsync='always').url}?loss_window_s=12.5")
    assert store.loss_window_s == 12.5
    await store.close()


@pytest.mark.redis
async def test_a_server_that_hides_its_configuration_has_to_be_vouched_for(start_redis: StartRedis) -> None:
    server = start_redis(settings={"user": "worker on >pw ~spliteasy:* +@all -config"})
    url = f"redis://worker:pw@127.0.0.1:{server.port}/0"
    with capture_logs() as logs:
        store = await open_store(url)
    assert store.loss_window_s == math.inf
    assert [entry["event"] for entry in logs] == ["store durability unknown"]
    assert (await begin(store)).committed == 0
    await store.close()
    with capture_logs() as logs:
        store = await open_store(f"{url}?loss_window_s=2")
    assert (store.loss_window_s, logs) == (2.0, [])
    await store.close()


@pytest.mark.redis
async def test_an_account_that_may_not_even_ask(start_redis: StartRedis) -> None:
    server = start_redis(settings={"user": "worker on >pw ~spliteasy:* +get"})
    with pytest.raises(UserError, match="denies"):
        await open_store(f"redis://worker:pw@127.0.0.1:{server.port}/0")


@pytest.mark.redis
async def test_a_server_that_evicts_keys_is_refused(start_redis: StartRedis) -> None:
    server = start_redis(settings={"maxmemory-policy": "allkeys-lru"})
    with pytest.raises(UserError, match="allkeys-lru") as caught:
        await open_store(server.url)
    assert "noeviction" in str(caught.value)


@pytest.mark.redis
async def test_eviction_that_is_switched_on_later_is_told_with_the_next_heartbeat(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    store = await open_store(server.url)
    info = WorkerInfo(
        worker="w", started_at=0.0, sessions=0, shards=(), steps=0, host="h", pid=1, state="serving"
    )
    with capture_logs() as logs:
        for policy in ("noeviction", "allkeys-lru", "allkeys-lru", "noeviction"):
            ask_redis(server, "CONFIG", "SET", "maxmemory-policy", policy)
            await store.heartbeat(info, ttl_s=10)
    assert [entry["log_level"] for entry in logs] == ["error", "warning"]
    assert "allkeys-lru" in logs[0]["event"]
    await store.close()


@pytest.mark.redis
async def test_a_replica_is_waited_for_until_it_takes_writes(start_redis: StartRedis) -> None:
    """The URL leads to what becomes the primary, as after a failover."""
    primary = start_redis()
    replica = start_redis(settings={"replicaof": f"127.0.0.1 {primary.port}"})
    with pytest.raises(StoreDeferred, match="replica"):
        await open_store(replica.url)
    told: list[str] = []

    def promote(text: str) -> None:
        told.append(text)
        ask_redis(replica, "REPLICAOF", "NO", "ONE")

    async with asyncio.timeout(20):
        store = await tried_for_a_while(lambda: open_store(replica.url), tell=promote)
    assert len(told) == 1
    ask_redis(replica, "REPLICAOF", "127.0.0.1", str(primary.port))
    with pytest.raises(StoreDeferred):
        await begin(store)
    ask_redis(replica, "REPLICAOF", "NO", "ONE")
    assert (await begin(store)).committed == 0
    await store.close()


@pytest.mark.redis
async def test_a_password_that_changes_meanwhile_is_waited_out(start_redis: StartRedis) -> None:
    server = start_redis(password=SECRET)
    store = await open_store(server.url)
    ask_redis(server, "CONFIG", "SET", "requirepass", "another")
    ask_redis(replace(server, password="another"), "CLIENT", "KILL", "TYPE", "normal")
    with pytest.raises(StoreDeferred) as caught:
        await begin(store)
    assert SECRET not in str(caught.value)
    ask_redis(replace(server, password="another"), "CONFIG", "SET", "requirepass", SECRET)
    assert (await begin(store)).committed == 0
    await store.close()


@pytest.mark.redis
async def test_too_many_clients_are_waited_out(start_redis: StartRedis) -> None:
    server = start_redis()
    with closing(socket.create_connection(("127.0.0.1", server.port))) as other:
        ask_redis(server, "CONFIG", "SET", "maxclients", "1")
        # Redis says so and hangs up: where we write first, all that is left is a lost connection.
        with pytest.raises(StoreUnavailable, match=r"no more clients|can't be reached"):
            await open_store(server.url)
        other.close()
    async with asyncio.timeout(20):
        await (await tried_for_a_while(lambda: open_store(server.url))).close()


@pytest.mark.redis
async def test_the_number_of_the_database_in_the_url_counts(redis_url: str) -> None:
    first, second = await open_store(redis_url), await open_store(redis_url.replace("/0", "/1"))
    await begin(first)
    assert await second.sessions() == []
    for store in (first, second):
        await store.close()


# SQLite -------------------------------------------------------------------------------------------


async def test_a_sqlite_file_is_made_with_its_folder_and_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/folder with space/store.db"
    store = await open_store(url)
    assert store.loss_window_s == 0
    meta = await begin(store)
    await store.close()
    store = await open_store(url.replace(" ", "%20"))
    assert await store.sessions() == [meta]
    await store.close()
    assert (tmp_path / "new/folder with space/store.db").exists()


async def test_three_slashes_are_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await (await open_store("sqlite:///runs/store.db")).close()
    assert (tmp_path / "runs/store.db").exists()


async def test_without_a_path_it_is_in_memory_and_ends_with_the_process() -> None:
    store = await open_store("sqlite://")
    assert isinstance(store, SqliteStore)
    assert store.loss_window_s == math.inf
    assert await store.sessions() == []
    await store.close()


async def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff" * 1000)
    with pytest.raises(UserError, match=r"photo\.jpg is not a store"):
        await open_store(f"sqlite:///{path}")
    assert path.read_bytes() == b"\xff\xd8\xff" * 1000


async def test_a_database_of_something_else_or_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE cats (name TEXT)")
    database.close()
    with pytest.raises(UserError, match="format 0"):
        await open_store(f"sqlite:///{path}")


@pytest.mark.redis
async def test_a_redis_with_sessions_of_an_older_format_is_refused(redis_server: RedisServer) -> None:
    ask_redis(redis_server, "SADD", "spliteasy:sessions", "digits.phone-1")
    with pytest.raises(UserError, match="can't read"):
        await open_store(redis_server.url)


@pytest.mark.parametrize("path", ["/proc/no/such/store.db", "/proc", "/dev/null/store.db"])
async def test_a_path_where_no_file_can_be(path: str) -> None:
    with pytest.raises(StoreUnavailable, match="can't be opened"):
        await open_store(f"sqlite:///{path}")
