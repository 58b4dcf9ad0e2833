"""The contract of all else: closing, listing, forgetting; jobs; workers."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from server_worker.store import Owner, StaleAttempt, StaleOwner, Store, StoredJob, UnknownSession, WorkerInfo
from tests.store.steps import (
    FIRST,
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


async def test_a_closed_session_keeps_its_state_and_opens_again(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3)
    closed = done(await store.close_session(SESSION, attempt=FIRST, owner=meta.owner))
    assert (closed.closed, closed.committed) == (True, 3)
    assert done(await store.close_session(SESSION, attempt=FIRST, owner=meta.owner)).closed
    again = done(await open_at(store, attempt=SECOND, held=(3,)))
    assert (again.closed, again.committed) == (False, 3)
    assert await logged_steps(store) == [1, 2, 3]


async def test_only_owner_and_attempt_close(store: Store) -> None:
    meta = await begin(store)
    rival = Owner(fence=1, nonce="w2")
    assert await store.close_session(SESSION, attempt=FIRST, owner=rival) == StaleOwner(stored=meta.owner)
    stale = await store.close_session(SESSION, attempt=SECOND, owner=meta.owner)
    assert stale == StaleAttempt(stored=FIRST)
    unknown = await store.close_session("digits.nobody", attempt=FIRST, owner=meta.owner)
    assert unknown == UnknownSession()
    assert await store.session(SESSION) == meta


async def test_every_move_of_a_session_is_seen_in_its_time(store: Store) -> None:
    times = [(await begin(store)).updated_at]
    meta = done(await store.claim(SESSION, attempt=FIRST, step=1, worker="w2"))
    times.append(meta.updated_at)
    meta = await run_steps(store, meta, 1)
    times.append(meta.updated_at)
    times.append(done(await snapshot(store, meta, 1)).updated_at)
    times.append(done(await store.close_session(SESSION, attempt=FIRST, owner=meta.owner)).updated_at)
    assert times == sorted(set(times))
    assert abs(times[0] - time.time()) < 60
    assert [each.updated_at for each in await store.sessions()] == times[-1:]


NAMES = ["a.b", "a.b2", "a2.b", "job-1.phone-1", "job-1.phone-11", "-.-", "0" * 63 + "." + "z" * 63]


async def test_sessions_are_listed_by_name_and_forgotten_one_by_one(store: Store) -> None:
    assert await store.sessions() == []
    for name in NAMES:
        meta = await run_steps(store, await begin(store, name), 2)
        await snapshot(store, meta, 1)
    assert [meta.session for meta in await store.sessions()] == sorted(NAMES)
    for gone, name in enumerate(NAMES):
        assert await store.forget(name)
        assert not await store.forget(name)
        assert await store.session(name) is None
        assert [meta.session for meta in await store.sessions()] == sorted(NAMES[gone + 1 :])
        with pytest.raises(KeyError):
            await store.read_snapshot(name, 1)
        with pytest.raises(KeyError):
            await log_of(store, 0, 1, name)
        for other in NAMES[gone + 1 :]:
            assert await logged_steps(store, other, upto=3) == [1, 2]


async def test_a_forgotten_session_begins_anew(store: Store) -> None:
    old = await run_steps(store, await begin(store), 2)
    await put(store, old, 3, b"f", b"b")
    await store.forget(SESSION)
    meta = await begin(store)
    assert (meta.committed, meta.owner.fence, meta.log_bytes) == (0, 1, 0)
    assert await logged_steps(store) == []
    assert (await run_steps(store, meta, 1)).committed == 1


async def test_only_what_is_idle_for_long_enough_and_has_that_owner_is_forgotten_as_abandoned(
    store: Store,
) -> None:
    meta = await run_steps(store, await begin(store), 2)
    rival = replace(meta.owner, nonce="w2")
    assert not await store.forget_abandoned(SESSION, owner=meta.owner, idle_s=60)
    assert not await store.forget_abandoned(SESSION, owner=rival, idle_s=-1)
    newer = done(await store.claim(SESSION, attempt=FIRST, step=3, worker="w2"))
    assert not await store.forget_abandoned(SESSION, owner=meta.owner, idle_s=-1), "it was claimed meanwhile"
    assert await store.session(SESSION) == newer
    assert [each.session for each in await store.sessions()] == [SESSION]
    assert await store.forget_abandoned(SESSION, owner=newer.owner, idle_s=-1)
    assert await store.session(SESSION) is None
    assert await store.sessions() == []
    assert not await store.forget_abandoned(SESSION, owner=newer.owner, idle_s=-1)


async def test_the_stores_own_clock_is_the_one_that_times_are_of(store: Store) -> None:
    before = await store.now()
    meta = await begin(store)
    assert before <= meta.updated_at <= await store.now()


# Jobs ---------------------------------------------------------------------------------------------


def job(digest: str, name: str = "digits") -> StoredJob:
    parts = {"head.json": b"{}", "weights": digest.encode() * 1000, "empty": b""}
    return StoredJob(name=name, digest=digest, manifest=f"manifest of {digest}".encode(), parts=parts)


async def test_a_job_comes_back_by_name_and_by_version(store: Store) -> None:
    for digest in ("d1", "d2"):
        await store.put_job(job(digest))
    assert await store.get_job("digits") == job("d2")
    assert await store.get_job("digits", "d1") == job("d1")
    assert await store.job_versions() == {"digits": ["d2", "d1"]}


async def test_a_job_submitted_again_becomes_the_newest(store: Store) -> None:
    for digest in ("d1", "d2", "d1"):
        await store.put_job(job(digest))
    assert await store.get_job("digits") == job("d1")
    assert await store.job_versions() == {"digits": ["d1", "d2"]}


async def test_a_large_part(store: Store) -> None:
    large = StoredJob(name="big", digest="d1", manifest=b"", parts={"weights": b"\x01" * (20 << 20) + b"end"})
    await store.put_job(large)
    assert await store.get_job("big") == large
    for wanted in ([], sorted(large.parts)[:1], sorted(large.parts)[1:]):
        found = await store.get_job(
            "big", wanted=lambda names, wanted=wanted: [n for n in names if n in wanted]
        )
        assert found == replace(large, parts={name: large.parts[name] for name in wanted})


async def test_jobs_that_are_not_there(store: Store) -> None:
    assert await store.job_versions() == {}
    assert await store.get_job("digits") is None
    await store.put_job(job("d1"))
    assert await store.get_job("digits", "d2") is None
    assert await store.get_job("digit") is None


async def test_jobs_of_several_names(store: Store) -> None:
    for name in ("digits", "digits-2", "a"):
        await store.put_job(job("d1", name))
    assert dict(await store.job_versions()) == {"a": ["d1"], "digits": ["d1"], "digits-2": ["d1"]}
    assert await store.get_job("digits-2") == job("d1", "digits-2")


async def test_a_signature_comes_with_the_version_and_is_never_lost(store: Store) -> None:
    signed = replace(job("d1"), signature="5" * 128)
    await store.put_job(job("d1"))
    again = replace(signed, signature="6" * 128)
    for submitted, found in ((signed, signed), (job("d1"), signed), (again, again)):
        await store.put_job(submitted)
        assert await store.get_job("digits") == found
    await store.put_job(job("d2"))
    assert await store.get_job("digits") == job("d2")


# Devices ------------------------------------------------------------------------------------------


async def test_a_device_is_limited_to_jobs_until_it_is_not(store: Store) -> None:
    both = ["phone-1", "phone-2"]
    assert await store.allowed(both) == {}
    assert await store.allowed([]) == {}
    await store.allow("phone-1", ["faces", "digits@d1"])
    await store.allow("phone-2", [])
    assert await store.allowed(both) == {"phone-1": ("faces", "digits@d1"), "phone-2": ()}
    assert await store.allowed(["phone-1", "phone-3"]) == {"phone-1": ("faces", "digits@d1")}
    await store.allow("phone-1", ["digits"])
    await store.allow("phone-2", None)
    await store.allow("phone-3", None)
    assert await store.allowed([*both, "phone-3"]) == {"phone-1": ("digits",)}


# The stack ----------------------------------------------------------------------------------------


async def test_the_first_type_of_queues_stays(store: Store) -> None:
    assert await store.queue_type() is None
    assert await store.queue_type("classic") == "classic"
    assert await store.queue_type("quorum") == "classic"
    assert await store.queue_type() == "classic"
    assert await store.shards() is None


async def test_the_first_number_of_shards_stays(store: Store) -> None:
    assert await store.shards() is None
    assert await store.shards(64) == 64
    assert await store.shards(16) == 64
    assert await store.shards() == 64


# Workers ------------------------------------------------------------------------------------------


def worker(name: str) -> WorkerInfo:
    return WorkerInfo(
        worker=name,
        started_at=1700000000.25,
        sessions=3,
        shards=(0, 7),
        steps=12,
        host="höst 1",
        pid=4711,
        state="serving",
    )


async def test_workers_are_seen_while_their_heart_beats(store: Store) -> None:
    assert await store.workers() == []
    await store.heartbeat(worker("w2"), ttl_s=60)
    await store.heartbeat(worker("w1"), ttl_s=60)
    draining = replace(worker("w2"), state="draining", shards=())
    await store.heartbeat(draining, ttl_s=60)
    assert await store.workers() == [worker("w1"), draining]
    await store.leave("w1")
    await store.leave("nobody")
    assert await store.workers() == [draining]


async def test_a_worker_whose_heart_stopped_is_not_seen(store: Store) -> None:
    await store.heartbeat(worker("w1"), ttl_s=0.02)
    await store.heartbeat(worker("w2"), ttl_s=60)
    deadline = time.monotonic() + 60
    while await store.workers() != [worker("w2")]:
        assert time.monotonic() < deadline
    await store.heartbeat(worker("w3"), ttl_s=60)
    assert await store.workers() == [worker("w2"), worker("w3")]


async def test_a_commit_does_not_need_the_worker_to_have_a_heartbeat(store: Store) -> None:
    meta = await begin(store)
    await put(store, meta, 1, b"f", b"b")
    assert done(await commit(store, meta, 1)).committed == 1
    assert await store.workers() == []
