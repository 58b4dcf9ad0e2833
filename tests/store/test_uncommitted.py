"""Requests that no commit names: counted, replaced by the next try, bounded, and gone with the session."""

from __future__ import annotations

from typing import Any

import pytest

from server_worker.store import Attempt, Store, open_store, staging
from server_worker.store.redis import store as redis_module
from server_worker.store.redis.link import connect
from server_worker.store.redis.store import RedisStore
from spliteasy.errors import StoreError, StoreFull
from tests.fixtures_redis import RedisServer, ask_redis
from tests.store.steps import FIRST, SECOND, SESSION, begin, commit, done, open_at, put, run_steps, snapshot

pytestmark = pytest.mark.redis
MEGABYTE = bytes(1 << 20)


async def waiting_bytes(store: Store) -> int:
    meta = await store.session(SESSION)
    assert meta is not None
    return meta.waiting_bytes


async def requests_in(store: RedisStore) -> int:
    """Blobs of requests that the server has, named or not."""
    return sum(b":request:" in key for key in await store._link.call("KEYS", "*"))


@pytest.fixture
async def redis(redis_server: RedisServer) -> RedisStore:
    store = await open_store(redis_server.url)
    assert isinstance(store, RedisStore)
    return store


async def test_tries_of_one_step_take_each_others_place(redis: RedisStore) -> None:
    meta = await begin(redis)
    for _ in range(30):
        await put(redis, meta, 1, MEGABYTE, MEGABYTE)
        assert await waiting_bytes(redis) == 2 << 20
        assert await requests_in(redis) == 2
    assert done(await commit(redis, meta, 1)).waiting_bytes == 0
    assert await requests_in(redis) == 2
    await redis.close()


async def test_restarts_in_the_middle_of_a_step_leave_nothing_behind(redis: RedisStore) -> None:
    await begin(redis)
    for number in range(2, 32):
        meta = done(await open_at(redis, attempt=Attempt(number=number, nonce="a")))
        assert meta.waiting_bytes == 0
        assert await requests_in(redis) == 0
        await put(redis, meta, 1, MEGABYTE)
        assert await requests_in(redis) == 1
    await redis.close()


async def test_a_new_owner_clears_what_the_last_one_left(redis: RedisStore) -> None:
    meta = await begin(redis)
    await put(redis, meta, 1, MEGABYTE, MEGABYTE)
    rival = done(await redis.claim(SESSION, attempt=FIRST, step=1, worker="w2"))
    assert (rival.waiting_bytes, await requests_in(redis)) == (0, 0)
    await put(redis, rival, 1, MEGABYTE)
    await put(redis, meta, 1, MEGABYTE, MEGABYTE)  # of who was given up: it is not even written
    assert (await waiting_bytes(redis), await requests_in(redis)) == (1 << 20, 1)
    assert done(await commit(redis, rival, 1, requests=1)).committed == 1
    await redis.close()


async def test_a_commit_that_is_refused_leaves_no_request_behind(redis: RedisStore) -> None:
    meta = await begin(redis)
    await put(redis, meta, 1, b"small", b"small")
    await redis.claim(SESSION, attempt=FIRST, step=1, worker="w2")
    await commit(redis, meta, 1)
    assert await requests_in(redis) == 0
    await redis.close()


async def test_a_forgotten_session_takes_all_along(redis: RedisStore) -> None:
    meta = await run_steps(redis, await begin(redis), 1)
    await put(redis, meta, 2, MEGABYTE)
    done(await snapshot(redis, meta, 1))
    assert await redis.forget(SESSION)
    assert await redis._link.call("KEYS", "*") == []
    await redis.close()


async def test_snapshots_that_were_never_named_are_counted_and_go_too(
    redis: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = await run_steps(redis, await begin(redis), 1)
    put_values = redis_module.put_values

    async def died(*what: Any, **how: Any) -> None:
        await put_values(*what, **how)
        raise StoreError("the worker died")

    with monkeypatch.context() as patch:
        patch.setattr(redis_module, "put_values", died)
        with pytest.raises(StoreError, match="died"):
            await snapshot(redis, meta, 1, MEGABYTE)
    assert await waiting_bytes(redis) == 1 << 20
    assert done(await open_at(redis, attempt=SECOND, held=(0, 1))).waiting_bytes == 0
    assert not [key for key in await redis._link.call("KEYS", "*") if b":snapshot:" in key]
    await redis.close()


async def test_beyond_the_limit_of_a_session_nothing_is_written(
    redis: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "WAITING_BYTES", 3 << 20)
    meta = await begin(redis)
    await put(redis, meta, 1, MEGABYTE, MEGABYTE, MEGABYTE)
    with pytest.raises(StoreFull, match="not committed yet"):
        await redis.put_request(SESSION, attempt=FIRST, owner=meta.owner, step=1, index=3, body=MEGABYTE)
    assert await requests_in(redis) == 3
    assert done(await commit(redis, meta, 1, requests=3)).committed == 1
    await redis.close()


async def test_the_requests_of_a_step_that_stays_open_do_not_run_out(redis_server: RedisServer) -> None:
    store = RedisStore(await connect(redis_server.url), put_ttl_s=30.0)
    meta = await begin(store)
    await put(store, meta, 1, MEGABYTE, b"small")
    keys = [key for key in await store._link.call("KEYS", "*") if b":request:" in key or b":waiting" in key]
    assert len(keys) == 2
    for key in keys:
        assert ask_redis(redis_server, "PEXPIRE", key.decode(), "5000") == "1"
    await store.keep_requests(SESSION, attempt=SECOND, owner=meta.owner)
    assert all([int(await store._link.call("PTTL", key)) <= 5000 for key in keys])
    await store.keep_requests(SESSION, attempt=FIRST, owner=meta.owner)
    assert all([int(await store._link.call("PTTL", key)) > 5000 for key in keys])
    assert done(await commit(store, meta, 1)).committed == 1
    await store.close()
