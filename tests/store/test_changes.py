"""A conditional write: decided on the record that a process saw last, made if that record still stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server_worker.store import (
    Owner,
    SessionMeta,
    SqliteStore,
    StaleAttempt,
    StaleOwner,
    StepBehind,
    open_store,
    sessions,
)
from server_worker.store.records import decode_session, encode_session
from server_worker.store.redis.store import RedisStore
from server_worker.store.rules import dropped_snapshots, dropped_steps
from server_worker.store.sessions import Moved
from spliteasy.errors import StoreUnavailable
from tests.store.steps import (
    FIRST,
    JOB,
    SECOND,
    SESSION,
    begin,
    commit,
    done,
    log_of,
    open_at,
    put,
    run_steps,
    snapshot,
)

Pair = tuple[SqliteStore | RedisStore, SqliteStore | RedisStore]


@pytest.fixture(params=["file", pytest.param("redis", marks=pytest.mark.redis)])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two processes on one store."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else f"sqlite:///{tmp_path}/s.db"
    first, second = await open_store(url), await open_store(url)
    assert isinstance(first, SqliteStore | RedisStore)
    assert isinstance(second, SqliteStore | RedisStore)
    yield first, second
    await first.close()
    await second.close()


async def test_a_refusal_is_of_the_record_that_stands(pair: Pair) -> None:
    first, second = pair
    meta = await run_steps(first, await begin(first), 2)
    taken = done(await second.claim(SESSION, attempt=FIRST, step=3, worker="w2"))
    await run_steps(second, taken, 4)
    assert await commit(first, meta, 5) == StaleOwner(stored=taken.owner)
    assert await first.claim(SESSION, attempt=FIRST, step=3, worker="w1") == StepBehind(committed=4)
    newer = done(await open_at(second, attempt=SECOND, held=(3,)))
    assert await first.claim(SESSION, attempt=FIRST, step=5, worker="w1") == StaleAttempt(stored=SECOND)
    assert done(await first.claim(SESSION, attempt=SECOND, step=4, worker="w1")).committed == 3
    await second.forget(SESSION)
    assert done(await open_at(first, worker="w3")).owner == Owner(fence=1, nonce="w3")
    assert newer.owner.fence == 3


async def test_a_record_that_moved_is_decided_on_again(pair: Pair) -> None:
    """An operator pauses, and another task snapshots, while the owner commits what it had begun."""
    first, second = pair
    meta = await run_steps(first, await begin(first), 3)
    await put(first, meta, 4, b"f4", bytes(1 << 20))
    await second.pause(SESSION, True)
    done(await snapshot(second, meta, 2))
    moved = done(await commit(first, meta, 4, oldest=3))
    assert (moved.paused, moved.committed, moved.snapshots) == (True, 4, (2,))
    assert [entry.requests for entry in await log_of(first, 2, 4)] == [
        (b"f3", b"b3"),
        (b"f4", bytes(1 << 20)),
    ]
    assert await second.session(SESSION) == moved


async def test_who_is_always_overtaken_gives_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair
    meta = await run_steps(first, await begin(first), 1)
    store, tries = first._store, 0

    async def overtaken(change: Any) -> Any:
        nonlocal tries
        tries += 1
        await second.pause(SESSION, bool(tries % 2))
        return await store(change)

    monkeypatch.setattr(first, "_store", overtaken)
    await put(first, meta, 2, b"f", b"b")
    with pytest.raises(StoreUnavailable, match="again and again"):
        await commit(first, meta, 2)
    assert tries == sessions.TRIES
    monkeypatch.undo()
    assert done(await commit(first, meta, 2)).committed == 2


async def test_the_same_change_again_is_made_once_and_an_outdated_one_not(pair: Pair) -> None:
    """The client library may send a write twice, and the first copy may arrive last."""
    first, _ = pair
    meta = await begin(first)
    made: list[Any] = []
    store = first._store

    async def twice(change: Any) -> Any:
        made.append(change)
        stored = await store(change)
        if isinstance(first, RedisStore):  # a transaction of SQLite is never sent twice
            assert await store(change) == stored
        return stored

    first._store = twice  # type: ignore[method-assign]
    meta = await run_steps(first, meta, 2)
    meta = done(await first.claim(SESSION, attempt=FIRST, step=3, worker="w2"))
    first._store = store  # type: ignore[method-assign]
    for change in made[:-1]:
        assert isinstance(await first._store(change), Moved)
    assert await first.session(SESSION) == meta
    assert len(await log_of(first, 0, 2)) == 2


@pytest.mark.redis
async def test_a_step_costs_one_round_trip(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await open_store(redis_url)
    assert isinstance(store, RedisStore)
    meta = await run_steps(store, await begin(store), 1)
    run, calls = store._link._run, 0

    async def counted(work: Any) -> Any:
        nonlocal calls
        calls += 1
        return await run(work)

    monkeypatch.setattr(store._link, "_run", counted)
    await run_steps(store, meta, 5)
    assert calls == 4
    done(await store.claim(SESSION, attempt=FIRST, step=6, worker="w1"))
    assert calls == 5
    await put(store, meta, 6, bytes(1 << 20))
    assert calls == 7, "one to say that it comes, one to write it"
    await store.close()


async def test_the_records_that_a_process_remembers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "HELD_RECORDS", 3)
    store = SqliteStore(inline=True)
    for number in range(9):
        await begin(store, f"digits.phone-{number}")
    assert list(store._held) == [f"digits.phone-{number}" for number in (6, 7, 8)]
    assert done(await store.claim("digits.phone-1", attempt=FIRST, step=1, worker="w2")).owner.fence == 2
    await store.close()


META = SessionMeta(
    session=SESSION,
    job_digest=JOB,
    attempt=FIRST,
    resume_step=0,
    owner=Owner(fence=1, nonce="w1"),
    committed=3,
    snapshots=(0,),
    oldest_checkpoint=0,
    environment="torch 2, ünïcode",
    log_bytes=12,
    closed=False,
    updated_at=1.5,
    agent="1.0",
    paused=True,
)
STEP = st.integers(0, 9)
REACH = st.tuples(st.sets(STEP, min_size=1), STEP)
"""The snapshots of a record, and how far it is committed after the oldest."""


@given(REACH, REACH)
def test_what_a_session_no_longer_reaches_is_dropped_and_nothing_else(
    older: tuple[set[int], int], newer: tuple[set[int], int]
) -> None:
    before, after = (
        replace(META, snapshots=tuple(sorted(steps)), committed=min(steps) + ahead)
        for steps, ahead in (older, newer)
    )
    had, reached = (set(range(meta.snapshots[0] + 1, meta.committed + 1)) for meta in (before, after))
    assert dropped_steps(before, after) == sorted(had - reached)
    assert dropped_snapshots(before, after) == sorted(older[0] - newer[0] - {0})
    assert dropped_steps(before, None) == sorted(had)
    assert dropped_steps(None, after) == dropped_snapshots(None, after) == []


def test_a_record_comes_back_as_it_was_and_what_a_newer_version_adds_is_ignored() -> None:
    for record in (encode_session(META), encode_session(META).replace(b"{", b'{"something":"newer",', 1)):
        assert decode_session(SESSION, record, log_bytes=12, updated_at=1.5) == META
