"""Sessions that nobody touches go away when their job's retention is over, and not before."""

from __future__ import annotations

from server_worker.jobs import JobCache
from server_worker.retention import forget_abandoned
from server_worker.store import Attempt, SqliteStore, StoredJob
from spliteasy.compute import TorchThread
from tests.simulation import toy

DAY_S = 86400.0


async def test_only_abandoned_sessions_go() -> None:
    now = 0.0
    store = SqliteStore(None, inline=True, clock=lambda: now)
    compute = TorchThread()
    job = toy.job(toy.Variant())
    await store.put_job(StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts))
    for device in ("old", "new"):
        await store.open_session(
            f"toy.{device}",
            job_digest=job.digest,
            attempt=Attempt(number=1, nonce="a"),
            held=(0,),
            worker="w",
            environment="",
        )
        now += 20 * DAY_S
    assert job.spec.durability.retention_s == 30 * DAY_S
    jobs = JobCache(store, compute, limit=8)
    try:
        assert await forget_abandoned(store, jobs, clock=lambda: 29 * DAY_S) == []
        assert await forget_abandoned(store, jobs, clock=lambda: 31 * DAY_S) == ["toy.old"]
        assert [meta.session for meta in await store.sessions()] == ["toy.new"]
    finally:
        compute.close()
        await store.close()
