"""Sessions that nobody touches go away when their job's retention is over, and not before.

Ages are the store's: no clock of a worker has a say, and whatever is owned or was touched lately stays.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from server_worker.engine.local import LocalEngine
from server_worker.job_cache import JobCache
from server_worker.placement.retention import forget_abandoned
from server_worker.store import Attempt, Done, SessionMeta, SqliteStore, StoredJob, WorkerInfo
from spliteasy.runtime.torch_thread import TorchThread
from tests.simulation import toy

DAY_S = 86400.0
INFO = WorkerInfo(
    worker="w1", started_at=0.0, sessions=1, shards=(), steps=0, host="h", pid=1, state="serving", owner="w"
)


@dataclass(kw_only=True)
class Shelf:
    """A store whose clock is set by hand."""

    store: SqliteStore
    jobs: JobCache
    digest: str
    now: float = 0.0

    async def open(self, device: str, number: int = 1, worker: str = "w") -> SessionMeta:
        outcome = await self.store.open_session(
            f"toy.{device}",
            job_digest=self.digest,
            attempt=Attempt(number=number, nonce="a"),
            held=(0,),
            worker=worker,
            environment="",
        )
        assert isinstance(outcome, Done)
        return outcome.meta

    async def names(self) -> list[str]:
        return [meta.session for meta in await self.store.sessions()]


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    store = SqliteStore(None, inline=True, clock=lambda: shelf.now)
    compute = TorchThread()
    job = toy.job(toy.Variant())
    assert job.spec.durability.retention_s == 30 * DAY_S
    await store.put_job(StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts))
    shelf = Shelf(store=store, jobs=JobCache(store, LocalEngine(compute), limit=8), digest=job.digest)
    yield shelf
    compute.close()
    await store.close()


async def test_only_abandoned_sessions_go(shelf: Shelf) -> None:
    await shelf.open("old")
    shelf.now = 20 * DAY_S
    await shelf.open("new")
    shelf.now = 29 * DAY_S
    assert await forget_abandoned(shelf.store, shelf.jobs) == []
    shelf.now = 31 * DAY_S
    assert await forget_abandoned(shelf.store, shelf.jobs) == ["toy.old"]
    assert await shelf.names() == ["toy.new"]


@pytest.mark.parametrize("wrong_s", [1e12, -1e12])
async def test_a_worker_whose_clock_is_wrong_deletes_nothing(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    await shelf.open("phone-1")
    shelf.now = 29 * DAY_S
    monkeypatch.setattr(time, "time", lambda: wrong_s)
    assert await forget_abandoned(shelf.store, shelf.jobs) == []


async def test_what_a_worker_that_is_alive_owns_is_left_to_it(shelf: Shelf) -> None:
    await shelf.open("phone-1")
    shelf.now = 31 * DAY_S
    await shelf.store.heartbeat(INFO, ttl_s=5)
    assert await forget_abandoned(shelf.store, shelf.jobs, own="another") == []
    asked = {"toy.phone-1": 5.0}
    assert await forget_abandoned(shelf.store, shelf.jobs, own="w", idle_here_s=asked.__getitem__) == []
    asked["toy.phone-1"], shelf.now = 31 * DAY_S, 62 * DAY_S
    await shelf.store.heartbeat(INFO, ttl_s=5)
    assert await forget_abandoned(shelf.store, shelf.jobs, own="w", idle_here_s=asked.__getitem__) != []


async def test_beside_a_worker_that_does_not_say_what_it_owns_nothing_goes(shelf: Shelf) -> None:
    await shelf.open("phone-1")
    shelf.now = 31 * DAY_S
    older = WorkerInfo(
        worker="w0", started_at=0.0, sessions=1, shards=(), steps=0, host="h", pid=1, state="serving"
    )
    await shelf.store.heartbeat(older, ttl_s=5)
    assert await forget_abandoned(shelf.store, shelf.jobs, own="another") == []


async def test_a_session_that_comes_back_between_the_look_and_the_deletion_stays(shelf: Shelf) -> None:
    await shelf.open("phone-1")
    shelf.now = 31 * DAY_S
    forget = shelf.store.forget_abandoned

    async def too_late(session: str, **kwargs: object) -> bool:
        await shelf.open("phone-1", number=2, worker="w2")
        return await forget(session, **kwargs)  # type: ignore[arg-type]

    shelf.store.forget_abandoned = too_late  # type: ignore[method-assign,assignment]
    assert await forget_abandoned(shelf.store, shelf.jobs) == []
    assert await shelf.names() == ["toy.phone-1"]
