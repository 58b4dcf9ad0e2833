"""The contract of looking at many sessions: names, pages of those that changed last, the cost of a look."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server_worker.store import SqliteStore, Store, WorkerInfo, open_store
from server_worker.store.redis import store as redis_module
from server_worker.store.redis.store import RedisStore
from tests.store.steps import SECOND, begin, done, open_at, run_steps

WORKER = WorkerInfo(
    worker="w1", started_at=0, sessions=0, shards=(), steps=0, host="h", pid=1, state="serving"
)
NAMES = [f"digits.phone-{number}" for number in range(7)]


async def test_a_page_has_the_sessions_that_changed_last(store: Store) -> None:
    assert await store.newest_sessions(5) == await store.sessions_after(5) == []
    assert await store.session_count() == await store.active_count(3600) == 0
    metas = {name: await begin(store, name) for name in NAMES}
    metas[NAMES[2]] = await run_steps(store, metas[NAMES[2]], 2)
    await store.heartbeat(WORKER, ttl_s=60)
    order = [NAMES[2], *(name for name in reversed(NAMES) if name != NAMES[2])]
    assert await store.newest_sessions(0) == []
    assert await store.newest_sessions(3) == [metas[name] for name in order[:3]]
    assert await store.newest_sessions(3, skip=3) == [metas[name] for name in order[3:6]]
    assert await store.newest_sessions(9, skip=6) == [metas[order[6]]]
    assert await store.newest_sessions(9, skip=7) == []
    assert await store.session_count() == await store.active_count(3600) == len(NAMES)
    assert await store.active_count(-3600) == 0


async def test_pages_by_name_follow_each_other(store: Store) -> None:
    metas = [await begin(store, name) for name in (*NAMES, "digits-2.phone-1", "digit.phone-1")]
    everything = sorted(metas, key=lambda meta: meta.session)
    assert await store.sessions_after(4) == everything[:4]
    assert await store.sessions_after(4, everything[3].session) == everything[4:8]
    assert await store.sessions_after(4, everything[7].session) == everything[8:]
    assert await store.sessions_after(9, "zzz") == await store.sessions_after(0) == []
    wanted = ("digits", "digits-2", "digit", "nothing")
    assert await store.session_counts(wanted) == {"digits": 7, "digits-2": 1, "digit": 1, "nothing": 0}
    assert await store.session_counts(()) == {}
    named = await store.sessions_named([NAMES[3], "digits.nobody", NAMES[1]])
    assert [meta.session for meta in named] == [NAMES[3], NAMES[1]]
    await store.forget(NAMES[0])
    assert (await store.session_counts(["digits"]), await store.session_count()) == ({"digits": 6}, 8)


async def test_a_session_is_due_until_somebody_looked_at_it(store: Store) -> None:
    names = [(await begin(store, name)).session for name in NAMES[:3]]
    assert [meta.session for meta in await store.due_sessions(9)] == names
    assert [meta.session for meta in await store.due_sessions(1, skip=1)] == [names[1]]
    await store.look_later({names[0]: 3600.0, "digits.nobody": -1.0})
    await store.look_later({})
    assert [meta.session for meta in await store.due_sessions(9)] == names[1:]
    done(await open_at(store, session=names[0], attempt=SECOND))
    assert [meta.session for meta in await store.due_sessions(9)] == names[1:], "it is not due for an attempt"
    await store.look_later({names[0]: -7200.0})
    assert [meta.session for meta in await store.due_sessions(9)] == names
    await store.forget(names[0])
    assert [meta.session for meta in await store.due_sessions(9)] == names[1:]
    await begin(store, names[0])
    assert names[0] in [meta.session for meta in await store.due_sessions(9)]


async def test_what_was_forgotten_does_not_come_back_with_a_heartbeat(store: Store) -> None:
    await run_steps(store, await begin(store, NAMES[0]), 2)
    await begin(store, NAMES[1])
    await store.forget(NAMES[0])
    await store.heartbeat(WORKER, ttl_s=60)
    for page in (store.newest_sessions(9), store.sessions_after(9), store.due_sessions(9)):
        assert [meta.session for meta in await page] == [NAMES[1]]
    assert await store.session_count() == 1


@pytest.mark.redis
async def test_a_store_of_an_older_version_gets_its_indexes(redis_url: str) -> None:
    store = await open_store(redis_url)
    for name in NAMES:
        await begin(store, name)
    assert isinstance(store, RedisStore)
    await store._link.batch([("UNLINK", "spliteasy:names"), ("UNLINK", "spliteasy:due")])
    again = await open_store(redis_url)
    assert [meta.session for meta in await again.sessions_after(9)] == NAMES
    assert [meta.session for meta in await again.due_sessions(9)] == NAMES
    await again.look_later(dict.fromkeys(NAMES, 60.0))
    await begin(again, "digits.phone-9")
    await again._link.call("ZREM", "spliteasy:names", NAMES[0])  # type: ignore[attr-defined]
    last = await open_store(redis_url)
    assert len(await last.sessions_after(9)) == 8
    assert [meta.session for meta in await last.due_sessions(9)] == ["digits.phone-9"], "the times stay"
    for each in (store, again, last):
        await each.close()


async def test_a_file_of_an_older_version_gets_its_index(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    for name in NAMES:
        await begin(store, name)
    await store.close()
    with closing(sqlite3.connect(tmp_path / "store")) as db:
        db.execute("DROP TABLE due")
    again = SqliteStore(tmp_path / "store")
    assert [meta.session for meta in await again.due_sessions(9)] == NAMES
    await again.close()


@pytest.mark.redis
async def test_a_look_costs_the_same_whatever_is_parked(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "READ_SESSIONS", 10)
    store = await open_store(redis_url)
    assert isinstance(store, RedisStore)
    run, calls = store._link._run, 0

    async def counted(work: Any) -> Any:
        nonlocal calls
        calls += 1
        return await run(work)

    monkeypatch.setattr(store._link, "_run", counted)
    costs = []
    for many in (10, 40):
        for number in range(many):
            await begin(store, f"digits.parked-{number}")
        await store.heartbeat(WORKER, ttl_s=60)
        calls = 0
        assert len(await store.newest_sessions(10)) == 10
        assert await store.session_count() == many
        assert len(await store.sessions_after(10)) == 10
        costs.append(calls)
        calls = 0
        assert len(await store.sessions()) == many
        assert calls == 1 + many // 10
        calls = 0
        await store.heartbeat(WORKER, ttl_s=60)
        assert calls == 2, "the beat, and a look at the server's settings"
    assert costs == [5, 5]
    await store.close()
