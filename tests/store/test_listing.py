"""The contract of looking at many sessions: names, pages of those that changed last, the cost of a look."""

from __future__ import annotations

from typing import Any

import pytest

from server_worker.store import Store, WorkerInfo, open_store
from server_worker.store.redis import store as redis_module
from server_worker.store.redis.store import RedisStore
from tests.store.steps import begin, run_steps

WORKER = WorkerInfo(
    worker="w1", started_at=0, sessions=0, shards=(), steps=0, host="h", pid=1, state="serving"
)
NAMES = [f"digits.phone-{number}" for number in range(7)]


async def test_a_page_has_the_sessions_that_changed_last(store: Store) -> None:
    assert await store.newest_sessions(5) == await store.session_names() == []
    metas = {name: await begin(store, name) for name in NAMES}
    metas[NAMES[2]] = await run_steps(store, metas[NAMES[2]], 2)
    await store.heartbeat(WORKER, ttl_s=60)
    order = [NAMES[2], *(name for name in reversed(NAMES) if name != NAMES[2])]
    assert await store.newest_sessions(0) == []
    assert await store.newest_sessions(3) == [metas[name] for name in order[:3]]
    assert await store.newest_sessions(3, skip=3) == [metas[name] for name in order[3:6]]
    assert await store.newest_sessions(9, skip=6) == [metas[order[6]]]
    assert await store.newest_sessions(9, skip=7) == []
    assert await store.session_names() == NAMES


async def test_what_was_forgotten_does_not_come_back_with_a_heartbeat(store: Store) -> None:
    await run_steps(store, await begin(store, NAMES[0]), 2)
    await begin(store, NAMES[1])
    await store.forget(NAMES[0])
    await store.heartbeat(WORKER, ttl_s=60)
    assert (
        [meta.session for meta in await store.newest_sessions(9)] == await store.session_names() == [NAMES[1]]
    )


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
        assert len(await store.session_names()) == many
        costs.append(calls)
        calls = 0
        assert len(await store.sessions()) == many
        assert calls == 1 + many // 10
        calls = 0
        await store.heartbeat(WORKER, ttl_s=60)
        assert calls == 2, "the beat, and a look at the server's settings"
    assert costs == [3, 3]
    await store.close()
