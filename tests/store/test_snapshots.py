"""The contract of snapshots: kept once, fenced, trimmed with the log."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server_worker.store import (
    Attempt,
    Blob,
    CommitOutcome,
    NoCommonStep,
    Owner,
    SessionMeta,
    StaleAttempt,
    StaleOwner,
    StepBehind,
    Store,
    UnknownSession,
)
from tests.store.steps import (
    FIRST,
    SECOND,
    SESSION,
    begin,
    commit,
    done,
    logged_steps,
    open_at,
    put,
    run_steps,
    snapshot,
    stored_bytes,
)


async def test_a_snapshot_comes_back_as_it_was(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    tensors: dict[str, Blob] = {
        "layer.weight": memoryview(bytearray(range(200))),
        "empty": b"",
        "a name with spaces, ü and \n": bytearray(b"\x00\x01"),
        "large": bytes(20 << 20) + b"end",
    }
    after = done(await store.put_snapshot(SESSION, attempt=FIRST, owner=meta.owner, step=1, tensors=tensors))
    assert after.snapshots == (0, 1)
    read = await store.read_snapshot(SESSION, 1)
    assert list(read) == list(tensors)
    assert read == tensors
    assert all(type(value) is bytes for value in read.values())


async def test_a_snapshot_of_many_small_tensors(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    tensors = {f"layer.{index}": b"%d" % index for index in range(700)}
    done(await store.put_snapshot(SESSION, attempt=FIRST, owner=meta.owner, step=1, tensors=tensors))
    assert await store.read_snapshot(SESSION, 1) == tensors


async def test_a_snapshot_of_a_model_without_state(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    after = done(await store.put_snapshot(SESSION, attempt=FIRST, owner=meta.owner, step=1, tensors={}))
    assert after.snapshots == (0, 1)
    assert await store.read_snapshot(SESSION, 1) == {}


async def test_step_0_is_the_jobs_initial_weights_and_has_no_blobs(store: Store) -> None:
    meta = await begin(store)
    assert await store.read_snapshot(SESSION, 0) == {}
    assert done(await snapshot(store, meta, 0)).snapshots == (0,)
    assert await store.read_snapshot(SESSION, 0) == {}


async def test_reading_a_snapshot_that_is_not_there(store: Store) -> None:
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 0)
    await run_steps(store, await begin(store), 2)
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 1)


async def test_a_snapshot_trims_the_log_as_a_commit_does(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 5, oldest=4)
    meta = done(await snapshot(store, meta, 3))
    assert (meta.snapshots, meta.log_bytes) == ((3,), 2 * stored_bytes(store, b"f1", b"b1"))
    assert await logged_steps(store) == [4, 5]


async def test_a_snapshot_ahead_of_the_device_keeps_what_the_device_may_go_back_to(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 5, oldest=2)
    assert done(await snapshot(store, meta, 5)).snapshots == (0, 5)
    assert await logged_steps(store) == [1, 2, 3, 4, 5]


async def test_a_second_snapshot_of_a_step_is_done_and_the_first_stays(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    await snapshot(store, meta, 2, b"first")
    assert done(await snapshot(store, meta, 2, b"second")).snapshots == (0, 2)
    assert await store.read_snapshot(SESSION, 2) == {"weight": b"first"}


async def test_rival_snapshots_of_a_step_leave_one_whole(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    values = [{"a": b"%d" % index, "b": b"%d" % index} for index in range(6)]
    await asyncio.gather(
        *(
            store.put_snapshot(SESSION, attempt=FIRST, owner=meta.owner, step=2, tensors=tensors)
            for tensors in values
        )
    )
    assert await store.read_snapshot(SESSION, 2) in values


async def test_a_snapshot_of_a_step_that_is_not_committed(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    assert await snapshot(store, meta, 3) == StepBehind(committed=2)
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 3)


async def test_a_snapshot_older_than_the_kept_ones_is_done_and_not_kept(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 6, oldest=5)
    meta = done(await snapshot(store, meta, 4))
    after = done(await snapshot(store, meta, 2))
    assert (after.snapshots, after.log_bytes) == ((4,), meta.log_bytes)
    assert await logged_steps(store) == [5, 6]
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 2)


async def test_a_zombie_owner_snapshots_nothing(store: Store) -> None:
    zombie = await run_steps(store, await begin(store), 2)
    owner = done(await store.claim(SESSION, attempt=FIRST, step=3, worker="w2"))
    assert await snapshot(store, zombie, 2) == StaleOwner(stored=owner.owner)
    imposter = replace(owner, owner=Owner(fence=2, nonce="w1"))
    assert await snapshot(store, imposter, 2) == StaleOwner(stored=owner.owner)
    assert await store.session(SESSION) == owner


async def test_an_earlier_attempt_snapshots_nothing_after_a_rewind(store: Store) -> None:
    """A snapshot that was on its way when the device went back must not come into the new history."""
    old = await run_steps(store, await begin(store), 4)
    new = done(await open_at(store, attempt=SECOND, held=(2,)))
    assert await snapshot(store, old, 2) == StaleAttempt(stored=SECOND)
    new = await run_steps(store, new, 4)
    assert await snapshot(store, old, 4) == StaleAttempt(stored=SECOND)
    assert await store.session(SESSION) == new


async def test_a_snapshot_of_a_session_that_was_forgotten(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    await store.forget(SESSION)
    assert await snapshot(store, meta, 1) == UnknownSession()
    assert await store.sessions() == []


async def test_snapshots_racing_commits_leave_a_state_that_can_be_restored(store: Store) -> None:
    meta = await begin(store)
    running: list[asyncio.Task[object]] = []
    for step in range(1, 25):
        await put(store, meta, step, b"f%d" % step, b"b%d" % step)
        meta = done(await commit(store, meta, step, oldest=step - 2))
        if step % 3 == 0:
            running.append(asyncio.create_task(snapshot(store, meta, step, b"w%d" % step)))
    await asyncio.gather(*running)
    after = await store.session(SESSION)
    assert after is not None
    assert after.snapshots == (21, 24)
    assert await logged_steps(store) == [22, 23, 24]
    assert await store.read_snapshot(SESSION, 21) == {"weight": b"w21"}


async def test_a_snapshot_racing_a_rewind_is_there_whole_or_not_at_all(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 8)
    outcomes = await asyncio.gather(
        *(snapshot(store, meta, step, b"w%d" % step) for step in (2, 4, 6, 8)),
        open_at(store, attempt=SECOND, held=(4,), worker="w2"),
    )
    opened = done(outcomes[-1])
    assert (opened.committed, opened.attempt) == (4, SECOND)
    after = await store.session(SESSION)
    assert after is not None
    assert set(after.snapshots) <= {0, 2, 4}
    for step in after.snapshots[1:]:
        assert await store.read_snapshot(SESSION, step) == {"weight": b"w%d" % step}
    for step in (6, 8):
        with pytest.raises(KeyError):
            await store.read_snapshot(SESSION, step)


# What is kept as the best ------------------------------------------------------------------------


async def keep(store: Store, meta: SessionMeta, step: int, attempt: Attempt = FIRST) -> CommitOutcome:
    return await store.keep_snapshot(SESSION, attempt=attempt, owner=meta.owner, step=step)


async def test_the_best_stays_where_the_log_has_left_it_behind(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3)
    await snapshot(store, meta, 3, b"best")
    assert done(await keep(store, meta, 3)).best == (3,)
    assert done(await keep(store, meta, 3)).best == (3,)
    meta = await run_steps(store, meta, 9, oldest=8)
    meta = done(await snapshot(store, meta, 8))
    assert (meta.snapshots, meta.best, meta.stored) == ((8,), (3,), (3, 8))
    assert await store.read_snapshot(SESSION, 3) == {"weight": b"best"}
    assert await logged_steps(store) == [9]


async def test_a_better_one_takes_its_place_once_nothing_goes_back_to_before_it(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    for step, oldest in ((2, 1), (4, 2), (6, 3)):
        meta = await run_steps(store, meta, step, oldest=oldest)
        await snapshot(store, meta, step)
        meta = done(await keep(store, meta, step))
    assert (meta.snapshots, meta.best) == ((2, 4, 6), (2, 4, 6))
    meta = await run_steps(store, meta, 7, oldest=6)
    assert (meta.snapshots, meta.best) == ((6,), (6,))
    for step in (2, 4):
        with pytest.raises(KeyError):
            await store.read_snapshot(SESSION, step)


async def test_going_back_to_the_best_ends_what_came_after(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3)
    await snapshot(store, meta, 3, b"best")
    await keep(store, meta, 3)
    meta = await run_steps(store, meta, 9, oldest=8)
    await snapshot(store, meta, 8)
    assert isinstance(await open_at(store, attempt=SECOND, held=(4,)), NoCommonStep)
    meta = done(await open_at(store, attempt=SECOND, held=(3,)))
    assert (meta.committed, meta.snapshots, meta.best, meta.oldest_checkpoint) == (3, (3,), (3,), 3)
    assert await store.read_snapshot(SESSION, 3) == {"weight": b"best"}
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 8)
    assert await logged_steps(store) == []


async def test_a_resume_drops_what_was_the_best_later(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    for step in (2, 5):
        meta = await run_steps(store, meta, step)
        await snapshot(store, meta, step)
        meta = done(await keep(store, meta, step))
    meta = done(await open_at(store, attempt=SECOND, held=(0, 4)))
    assert (meta.committed, meta.snapshots, meta.best) == (4, (0, 2), (2,))


async def test_only_a_snapshot_that_is_there_is_kept_and_only_by_the_owner(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    assert await keep(store, meta, 2) == StepBehind(committed=2)
    await snapshot(store, meta, 2)
    assert await keep(store, meta, 2, SECOND) == StaleAttempt(stored=FIRST)
    rival = replace(meta, owner=replace(meta.owner, fence=9))
    assert await keep(store, rival, 2) == StaleOwner(stored=meta.owner)
    assert isinstance(
        await store.keep_snapshot("digits.nobody", attempt=FIRST, owner=meta.owner, step=2), UnknownSession
    )
    assert (await begin_again(store)).best == ()


async def begin_again(store: Store) -> SessionMeta:
    """Start over: nothing of the session is kept."""
    meta = done(await open_at(store, attempt=SECOND, restart=True))
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 2)
    return meta
