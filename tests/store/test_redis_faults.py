"""Redis under real faults: killed, paused, full, cut off, demoted; replies lost, requests arriving twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from deploy.nodes.redis_server import RedisServer
from server_worker.store import (
    Done,
    Owner,
    SessionMeta,
    Store,
    StoredJob,
    UnknownSession,
    WorkerInfo,
    open_store,
)
from server_worker.store.redis.link import connect
from server_worker.store.redis.store import RedisStore
from spliteasy.errors import StoreError, StoreFull, StoreUnavailable
from tests.fixtures_redis import StartRedis, ask_redis
from tests.store.proxy import Proxy
from tests.store.steps import (
    FIRST,
    JOB,
    SECOND,
    SESSION,
    begin,
    commit,
    done,
    log_of,
    logged_steps,
    open_at,
    put,
    run_steps,
    snapshot,
)

pytestmark = pytest.mark.redis

MEGABYTE = bytes(1 << 20)
GIVEN_UP_S = 30.0
"""A deadline that is reached only where a test fails."""
"""A request of this size is written when it is put: a small one waits for the commit."""
WORKER = WorkerInfo(
    worker="w1", started_at=0, sessions=0, shards=(), steps=0, host="h", pid=1, state="serving"
)
PACKAGE = StoredJob(name="digits", digest=JOB, manifest=b"{}", parts={"weights": b"w"})


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.close()


def every_call(store: Store) -> dict[str, Callable[[], Awaitable[object]]]:
    """Each method of the store once, on the session that `begin` made, at step 3."""
    owner = Owner(fence=1, nonce="w1")
    return {
        "put_job": lambda: store.put_job(PACKAGE),
        "get_job": lambda: store.get_job("digits"),
        "job_versions": store.job_versions,
        "open_session": lambda: open_at(store),
        "claim": lambda: store.claim(SESSION, attempt=FIRST, step=3, worker="w1"),
        "session": lambda: store.session(SESSION),
        "put_request": lambda: store.put_request(
            SESSION, attempt=FIRST, owner=owner, step=3, index=0, body=MEGABYTE
        ),
        "commit": lambda: store.commit(
            SESSION,
            attempt=FIRST,
            owner=owner,
            step=3,
            requests=0,
            gradient_digest="ga3",
            oldest_checkpoint=0,
        ),
        "put_snapshot": lambda: store.put_snapshot(
            SESSION, attempt=FIRST, owner=owner, step=2, tensors={"weight": b"w"}
        ),
        "read_snapshot": lambda: store.read_snapshot(SESSION, 0),
        "read_log": lambda: log_of(store, 0, 2),
        "close_session": lambda: store.close_session(SESSION, attempt=FIRST, owner=owner),
        "sessions": store.sessions,
        "heartbeat": lambda: store.heartbeat(WORKER, ttl_s=60),
        "workers": store.workers,
        "leave": lambda: store.leave("w1"),
        "forget": lambda: store.forget(SESSION),
    }


# Down -----------------------------------------------------------------------------------------------


async def test_every_call_on_a_killed_redis_says_so_soon_and_all_work_once_it_is_back(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    async with opened(server.url) as store:
        await run_steps(store, await begin(store), 2)
        server.kill()
        for call in every_call(store).values():
            with pytest.raises(StoreUnavailable, match=str(server.port)):
                await asyncio.wait_for(call(), GIVEN_UP_S)
        server.start()
        assert await logged_steps(store) == [1, 2]
        for call in every_call(store).values():
            await call()


async def test_a_paused_redis_is_given_up_in_time_and_the_commit_it_took_counts_once(
    start_redis: StartRedis,
) -> None:
    server = start_redis()
    async with opened(f"{server.url}?timeout_s=0.3") as store:
        meta = await run_steps(store, await begin(store), 2)
        await put(store, meta, 3, b"f3", b"b3")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(commit(store, meta, 3), GIVEN_UP_S)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert done(await commit(store, meta, 3)).committed == 3
        assert await logged_steps(store) == [1, 2, 3]


async def test_scripts_that_the_server_forgot_are_sent_again(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as store:
        meta = await run_steps(store, await begin(store), 1)
        ask_redis(redis_server, "SCRIPT", "FLUSH")
        assert (await run_steps(store, meta, 2)).committed == 2


@pytest.mark.parametrize(
    "command",
    [
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("ACL", "SETUSER", "default", "on", "nopass", "resetkeys", "~other:*"),
    ],
    ids=["too few replicas", "demoted by a failover", "permissions taken away"],
)
async def test_a_redis_that_refuses_writes_for_now_is_unavailable(
    start_redis: StartRedis, command: tuple[str, ...]
) -> None:
    server = start_redis()
    async with opened(server.url) as store:
        meta = await begin(store)
        ask_redis(server, *command)
        with pytest.raises(StoreUnavailable):
            await put(store, meta, 1, MEGABYTE)
        await put(store, meta, 1, b"f")
        with pytest.raises(StoreUnavailable):
            await commit(store, meta, 1, requests=1)
        with pytest.raises(StoreUnavailable):
            await store.claim(SESSION, attempt=FIRST, step=1, worker="w2")
        with pytest.raises(StoreUnavailable):
            await open_at(store, attempt=SECOND)


async def test_what_someone_else_broke_is_a_plain_store_error(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as store:
        await begin(store)
        ask_redis(redis_server, "SET", f"spliteasy:{{{SESSION}}}:record", "not ours")
        with pytest.raises(StoreError) as caught:
            await store.claim(SESSION, attempt=FIRST, step=1, worker="w2")
        assert type(caught.value) is StoreError
        assert not caught.value.retriable


# Lost replies, late copies --------------------------------------------------------------------------


async def test_a_call_whose_reply_is_lost_is_made_again_and_takes_effect_once(
    redis_server: RedisServer,
) -> None:
    """The client library sends it a second time, not knowing that the first was carried out."""
    async with Proxy(redis_server.port) as proxy, opened(f"redis://127.0.0.1:{proxy.port}") as store:
        meta = await run_steps(store, await begin(store, "digits.warm-up"), 2)
        await snapshot(store, meta, 1)
        await store.close_session(meta.session, attempt=meta.attempt, owner=meta.owner)
        await store.put_job(PACKAGE)
        proxy.lose_next_reply()
        assert (await begin(store)).owner.fence == 1
        proxy.lose_next_reply()
        meta = done(await store.claim(SESSION, attempt=FIRST, step=1, worker="w2"))
        assert meta.owner.fence == 2
        proxy.lose_next_reply()
        await put(store, meta, 1, MEGABYTE, b"b1")
        proxy.lose_next_reply()
        meta = done(await commit(store, meta, 1))
        assert (meta.committed, meta.log_bytes) == (1, len(MEGABYTE) + 2)
        meta = await run_steps(store, meta, 4)
        proxy.lose_next_reply()
        assert done(await snapshot(store, meta, 3)).snapshots == (0, 3)
        proxy.lose_next_reply()
        meta = done(await open_at(store, attempt=SECOND, held=(3,), worker="w2"))
        assert (meta.committed, meta.owner.fence) == (3, 2)
        proxy.lose_next_reply()
        await store.put_job(PACKAGE)
        proxy.lose_next_reply()
        assert await store.get_job("digits") == PACKAGE
        assert proxy.lost == 8
        assert await logged_steps(store) == [1, 2, 3]


async def test_copies_of_all_requests_that_arrive_last_change_nothing(redis_server: RedisServer) -> None:
    async with (
        Proxy(redis_server.port) as proxy,
        opened(f"redis://127.0.0.1:{proxy.port}") as store,
        opened(redis_server.url) as witness,
    ):
        meta = await run_steps(store, await begin(store), 5, oldest=3)
        meta = done(await snapshot(store, meta, 2, b"w2"))
        meta = done(await snapshot(store, meta, 5, b"w5"))
        meta = await run_steps(store, meta, 6)
        await put(store, meta, 7, b"waiting", b"waiting")
        await store.put_job(PACKAGE)
        before = await witness.session(SESSION)
        lasting = await lasting_keys(witness)
        await proxy.replay()
        after = await witness.session(SESSION)
        assert before is not None
        assert after is not None
        assert (after.owner, after.committed, after.snapshots) == (before.owner, 6, (2, 5))
        assert after.log_bytes == before.log_bytes
        assert await lasting_keys(witness) == lasting
        assert [entry.requests for entry in await log_of(witness, 2, 6)] == [
            (b"f%d" % step, b"b%d" % step) for step in range(3, 7)
        ]
        assert await witness.read_snapshot(SESSION, 2) == {"weight": b"w2"}
        assert await witness.get_job("digits") == PACKAGE
        assert done(await commit(store, meta, 7)).committed == 7


async def lasting_keys(store: Store) -> set[bytes]:
    """Keys without a time to live."""
    assert isinstance(store, RedisStore)
    link = store._link
    return {key for key in await link.call("KEYS", "*") if await link.call("PTTL", key) == -1}


async def test_what_no_commit_names_goes_and_what_one_names_stays(redis_server: RedisServer) -> None:
    store = RedisStore(await connect(redis_server.url), put_ttl_s=0.05)
    meta = await run_steps(store, await begin(store), 2)
    await snapshot(store, meta, 1)
    await store.put_job(PACKAGE)
    lasting = await lasting_keys(store)
    assert len(lasting) == 1 + 4 + 1 + 3 + 3  # record, requests, snapshot, indexes of sessions, job
    await put(store, meta, 3, MEGABYTE, b"b3")
    deadline = time.monotonic() + GIVEN_UP_S
    while int(ask_redis(redis_server, "DBSIZE")) > len(lasting):
        assert time.monotonic() < deadline
    with pytest.raises(StoreError):
        await commit(store, meta, 3)
    assert await lasting_keys(store) == lasting
    assert await logged_steps(store) == [1, 2]
    assert await store.read_snapshot(SESSION, 1) == {"weight": b"w"}
    assert (await run_steps(store, meta, 3)).committed == 3
    await store.close()


async def test_a_session_that_is_forgotten_leaves_no_key_behind(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as store:
        meta = await run_steps(store, await begin(store), 5, oldest=3)
        for step in (2, 4):
            await snapshot(store, meta, step)
        await open_at(store, attempt=SECOND, held=(3,))
        assert await store.forget(SESSION)
        assert await lasting_keys(store) == set()


# Full ---------------------------------------------------------------------------------------------


async def small_step(store: Store, meta: SessionMeta, step: int) -> None:
    """Its request goes with the commit."""
    await put(store, meta, step, b"small")
    await commit(store, meta, step, requests=1)


async def test_a_full_redis_refuses_writes_leaves_no_trace_and_recovers(start_redis: StartRedis) -> None:
    server = start_redis()
    async with opened(server.url) as store:
        meta = await begin(store)
        for step in range(1, 9):
            await put(store, meta, step, MEGABYTE)
            meta = done(await commit(store, meta, step, requests=1))
        await begin(store, "digits.other")
        keys = int(ask_redis(server, "DBSIZE"))
        ask_redis(server, "CONFIG", "SET", "maxmemory", "6mb")
        for refused in (
            put(store, meta, 9, MEGABYTE),
            small_step(store, meta, 9),
            snapshot(store, meta, 2),
            open_at(store, session="digits.third"),
            store.put_job(PACKAGE),
        ):
            with pytest.raises(StoreFull):
                await refused
        assert int(ask_redis(server, "DBSIZE")) == keys
        assert await store.session(SESSION) == meta
        assert await logged_steps(store) == list(range(1, 9))
        assert await store.forget("digits.other")
        done(await store.claim(SESSION, attempt=FIRST, step=9, worker="w1"))
        assert await store.forget(SESSION)
        assert (await run_steps(store, await begin(store), 3)).committed == 3


async def test_a_snapshot_that_fills_redis_half_way_leaves_nothing_behind(start_redis: StartRedis) -> None:
    server = start_redis(maxmemory_bytes=24 << 20)
    async with opened(server.url) as store:
        meta = await run_steps(store, await begin(store), 2)
        keys = int(ask_redis(server, "DBSIZE"))
        with pytest.raises(StoreFull):
            await snapshot(store, meta, 2, bytes(40 << 20))
        assert int(ask_redis(server, "DBSIZE")) == keys
        assert (await store.session(SESSION)) == meta
        assert done(await snapshot(store, meta, 2, MEGABYTE)).snapshots == (0, 2)


async def test_a_step_whose_requests_are_stored_can_be_committed_in_a_full_redis(
    start_redis: StartRedis,
) -> None:
    """Or a full store could never trim itself empty again."""
    server = start_redis()
    async with opened(server.url) as store:
        meta = await begin(store)
        for step in range(1, 9):
            await put(store, meta, step, MEGABYTE)
            meta = done(await commit(store, meta, step, requests=1))
        meta = done(await snapshot(store, meta, 8))
        await put(store, meta, 9, MEGABYTE, MEGABYTE)
        ask_redis(server, "CONFIG", "SET", "maxmemory", "6mb")
        with pytest.raises(StoreFull):
            await put(store, meta, 10, MEGABYTE)
        meta = done(await commit(store, meta, 9, oldest=8))
        assert (meta.committed, meta.snapshots) == (9, (8,))
        assert (await run_steps(store, meta, 10)).committed == 10


# Lost writes --------------------------------------------------------------------------------------


async def history(store: Store, upto: int) -> None:
    """A training with snapshots, trims and a rewind in it."""
    meta = await begin(store)
    for step in range(1, upto + 1):
        await put(store, meta, step, b"f%d" % step, b"b%d" % step)
        meta = done(await commit(store, meta, step, oldest=step - 3))
        if step % 4 == 0:
            meta = done(await snapshot(store, meta, step, b"w%d" % step))
        if step == upto // 2:
            meta = done(await open_at(store, attempt=SECOND, held=(step,), worker="w2"))


async def test_appendfsync_always_loses_nothing_when_redis_is_killed(start_redis: StartRedis) -> None:
    server = start_redis(appendfsync="always")
    async with opened(server.url) as store:
        assert store.loss_window_s == 0
        await history(store, 9)
        before = await store.session(SESSION)
        server.kill()
        server.start()
        assert await store.session(SESSION) == before
        assert await logged_steps(store) == list(range(5, 10))


async def test_a_store_that_lost_its_last_writes_has_a_whole_earlier_state(start_redis: StartRedis) -> None:
    """Redis restarted on an append-only file that was cut anywhere, as a dead machine leaves it."""
    server = start_redis()
    async with opened(server.url) as store:
        await history(store, 16)
    server.kill()
    (file,) = (server.folder / "data" / "appendonlydir").glob("*.incr.aof")
    whole = file.read_bytes()
    seen = set()
    for cut in sorted(random.Random(0).sample(range(len(whole)), 12), reverse=True):
        file.write_bytes(whole[:cut])
        server.start()
        async with opened(server.url) as store:
            meta = await store.session(SESSION)
            if meta is None:
                assert await store.claim(SESSION, attempt=SECOND, step=1, worker="w") == UnknownSession()
            else:
                seen.add(meta.committed)
                await check_whole(store)
                third = await open_at(store, attempt=type(FIRST)(number=3, nonce="c"), held=(meta.committed,))
                meta = done(third)
                await run_steps(store, meta, meta.committed + 2)
                await check_whole(store)
        server.kill()
    assert len(seen) > 4, "the cuts hit too few steps"


async def check_whole(store: Store) -> None:
    """Check that the session can be restored at every step from its oldest snapshot on."""
    meta = await store.session(SESSION)
    assert meta is not None
    entries = await log_of(store, meta.snapshots[0], meta.committed)
    for entry in entries:
        assert entry.requests == (b"f%d" % entry.step, b"b%d" % entry.step)
    assert meta.log_bytes == sum(len(body) for entry in entries for body in entry.requests)
    for step in meta.snapshots:
        assert await store.read_snapshot(SESSION, step) == ({"weight": b"w%d" % step} if step else {})
    assert isinstance(store, RedisStore)
    named = 1 + 2 * len(entries) + sum(1 for step in meta.snapshots if step)
    assert len([key for key in await lasting_keys(store) if b"{" in key]) == named


# Cancellation -------------------------------------------------------------------------------------


async def test_calls_cancelled_anywhere_leave_the_connections_sound(redis_server: RedisServer) -> None:
    rng = random.Random(7)
    async with opened(f"{redis_server.url}?timeout_s=5") as store:
        names = [f"digits.phone-{number}" for number in range(40)]
        for name in names:
            meta = await begin(store, name)
            await put(store, meta, 1, name.encode() * 20000)
            done(await commit(store, meta, 1, requests=1))
        cancelled = 0
        for _ in range(150):
            task = asyncio.create_task(log_of(store, 0, 1, rng.choice(names)))
            for _ in range(rng.randrange(40)):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
        assert cancelled > 50
        logs = await asyncio.gather(*(log_of(store, 0, 1, name) for name in names))
        assert [log[0].requests[0] for log in logs] == [name.encode() * 20000 for name in names]


async def test_a_cancelled_call_still_takes_place(redis_server: RedisServer) -> None:
    """Or its connection would have to be thrown away in the middle of an answer."""
    store = await open_store(redis_server.url)
    await begin(store)
    task = asyncio.create_task(store.close_session(SESSION, attempt=FIRST, owner=Owner(fence=1, nonce="w1")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()
    async with opened(redis_server.url) as again:
        assert [meta.closed for meta in await again.sessions()] == [True]


async def test_a_cancelled_commit_still_takes_place_or_not_as_a_whole(redis_server: RedisServer) -> None:
    async with opened(redis_server.url) as store:
        meta = await begin(store)
        for step in range(1, 15):
            await put(store, meta, step, b"f", b"b")
            task = asyncio.create_task(commit(store, meta, step))
            for _ in range(step - 1):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            again = await commit(store, meta, step)
            assert isinstance(again, Done)
            assert again.meta.committed == step
        assert await logged_steps(store) == list(range(1, 15))


async def test_calls_after_close_fail_and_closing_again_is_harmless(redis_server: RedisServer) -> None:
    store = await open_store(redis_server.url)
    await begin(store)
    claim = store.claim(SESSION, attempt=FIRST, step=1, worker="w2")
    running = asyncio.create_task(claim)
    await asyncio.sleep(0)
    await store.close()
    assert isinstance(await running, Done)
    await store.close()
    for call in every_call(store).values():
        with pytest.raises(StoreUnavailable, match="closed"):
            await call()
