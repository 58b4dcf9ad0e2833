"""The store behind real sentinels: it finds the primary, and the next one after a failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from server_worker.store import SessionMeta, Store, open_store
from spliteasy.errors import StoreDeferred, StoreUnavailable, UserError
from tests.fixtures_rabbitmq import free_ports
from tests.sentinels import NAME, WatchedRedis
from tests.store.steps import SESSION, begin, run_steps

pytestmark = pytest.mark.redis
ANSWERS_S = 60.0


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[WatchedRedis]:
    primary, replica, *sentinels = free_ports(5)
    server = WatchedRedis(
        folder=tmp_path / "redis",
        port=primary,
        replica_port=replica,
        sentinel_ports=tuple(sentinels),
        loss_window_s=10.0,
    )
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def behind(watched: WatchedRedis) -> AsyncIterator[Store]:
    store = await open_store(watched.url)
    yield store
    await store.close()


async def read(store: Store) -> SessionMeta:
    """Read the session, as soon as the store answers."""
    async with asyncio.timeout(ANSWERS_S):
        while True:
            with suppress(StoreUnavailable, StoreDeferred):
                meta = await store.session(SESSION)
                assert meta is not None
                return meta
            await asyncio.sleep(0.05)


async def test_a_session_goes_on_at_the_next_primary(watched: WatchedRedis, behind: Store) -> None:
    assert behind.loss_window_s == 10.0
    await run_steps(behind, await begin(behind), 3)
    assert await asyncio.to_thread(watched.copied)
    await asyncio.to_thread(watched.kill_primary)
    meta = await read(behind)
    assert meta.committed == 3
    assert (await run_steps(behind, meta, 5)).committed == 5
    await asyncio.to_thread(watched.start_primary)  # it follows now, and nobody writes there
    assert (await run_steps(behind, await read(behind), 7)).committed == 7
    another = await open_store(watched.url)
    assert (await read(another)).committed == 7
    await another.close()


async def test_what_a_failover_loses_is_lost_as_a_whole(watched: WatchedRedis, behind: Store) -> None:
    meta = await run_steps(behind, await begin(behind), 3)
    assert await asyncio.to_thread(watched.copied)
    await asyncio.to_thread(watched.stop_copying)
    await run_steps(behind, meta, 6)
    await asyncio.to_thread(watched.kill_primary)
    lost = await read(behind)
    assert lost.committed == 3
    assert (await run_steps(behind, lost, 4)).committed == 4


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+sentinel://127.0.0.1:1/main", "how many seconds"),
        ("redis+sentinel://127.0.0.1:1/?loss_window_s=1", "a path that is no name"),
        ("redis+sentinel://127.0.0.1:1/main/one?loss_window_s=1", "a path that is no name"),
        ("redis+sentinel://127.0.0.1:1/main?loss_window_s=1&no_such_option=1", "that is none of Redis's"),
        ("redis+sentinel://127.0.0.1:1,127.0.0.1:port/main?loss_window_s=1", "the store URL is wrong"),
        ("redis+cluster://127.0.0.1:1", "names a Redis Cluster"),
    ],
)
async def test_a_url_that_cannot_be_right(url: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        await open_store(url)
    assert complaint in caught.value.message
    assert caught.value.hint


async def test_nobody_knows_the_primary(watched: WatchedRedis) -> None:
    with pytest.raises(StoreUnavailable, match="no sentinel names a primary") as caught:
        await open_store(watched.url.replace(f"/{NAME}/", "/another/"))
    assert "Connection" not in caught.value.message
