"""The contract of `open_session` and `claim`: where an attempt begins, and who owns it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server_worker.store import (
    Attempt,
    CommitOutcome,
    Done,
    NoCommonStep,
    OtherJob,
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
    stored_bytes,
)


async def test_a_fresh_session_begins_at_step_0(store: Store) -> None:
    meta = done(await open_at(store, environment="torch 2.13, avx2, ünïcode"))
    assert (meta.session, meta.job_digest, meta.attempt) == (SESSION, JOB, FIRST)
    assert (meta.resume_step, meta.committed, meta.oldest_checkpoint) == (0, 0, 0)
    assert (meta.snapshots, meta.log_bytes, meta.closed) == ((0,), 0, False)
    assert meta.owner == Owner(fence=1, nonce="w1")
    assert meta.environment == "torch 2.13, avx2, ünïcode"
    assert await store.session(SESSION) == meta


async def test_a_session_the_store_never_had_cannot_begin_in_the_middle(store: Store) -> None:
    assert await open_at(store, held=(5, 10)) == NoCommonStep(oldest=None, committed=None)
    assert await store.session(SESSION) is None
    assert await store.sessions() == []


async def test_a_session_without_any_checkpoint_held_does_not_begin(store: Store) -> None:
    assert await open_at(store, held=()) == NoCommonStep(oldest=None, committed=None)


async def test_the_same_open_again_changes_nothing(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3)
    again = done(await open_at(store, environment="another"))
    assert (again.committed, again.resume_step, again.owner) == (3, 0, meta.owner)
    assert again.environment == meta.environment
    assert await logged_steps(store) == [1, 2, 3]


async def test_the_same_open_through_another_worker_moves_only_the_ownership(store: Store) -> None:
    await run_steps(store, await begin(store), 3)
    again = done(await open_at(store, worker="w2"))
    assert (again.committed, again.owner) == (3, Owner(fence=2, nonce="w2"))


async def test_a_newer_attempt_resumes_at_the_newest_step_both_have(store: Store) -> None:
    await run_steps(store, await begin(store), 5)
    meta = done(await open_at(store, attempt=SECOND, held=(0, 3, 5, 9), worker="w2", environment="new"))
    assert (meta.attempt, meta.resume_step, meta.committed) == (SECOND, 5, 5)
    assert (meta.owner, meta.environment) == (Owner(fence=2, nonce="w2"), "new")
    assert await logged_steps(store) == [1, 2, 3, 4, 5]


async def test_a_newer_attempt_through_the_owner_raises_no_fence_and_ends_the_older_one(store: Store) -> None:
    """A device that comes again and again would otherwise take the body from its other members."""
    meta = await begin(store)
    await put(store, meta, 1, b"f", b"b")
    assert done(await open_at(store, attempt=SECOND)).owner == meta.owner
    assert await commit(store, meta, 1) == StaleAttempt(stored=SECOND)


async def test_a_rewind_drops_log_and_snapshots_after_the_step(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 6)
    for step in (2, 4, 6):
        meta = done(await snapshot(store, meta, step, b"w%d" % step))
    bytes_of_two = 2 * stored_bytes(store, b"f1", b"b1")
    meta = done(await open_at(store, attempt=SECOND, held=(0, 2)))
    assert (meta.committed, meta.resume_step, meta.snapshots) == (2, 2, (0, 2))
    assert meta.log_bytes == bytes_of_two
    assert await logged_steps(store) == [1, 2]
    assert await store.read_snapshot(SESSION, 2) == {"weight": b"w2"}
    for step in (4, 6):
        with pytest.raises(KeyError):
            await store.read_snapshot(SESSION, step)


async def test_after_a_rewind_the_steps_are_made_anew(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 4)
    meta = done(await open_at(store, attempt=SECOND, held=(0, 2)))
    await put(store, meta, 3, b"other f3", b"other b3")
    meta = done(await commit(store, meta, 3, digest="other"))
    entries = await log_of(store, 0, 3)
    assert [entry.requests for entry in entries] == [
        (b"f1", b"b1"),
        (b"f2", b"b2"),
        (b"other f3", b"other b3"),
    ]
    assert entries[2].gradient_digest == "other"
    assert meta.log_bytes == sum(stored_bytes(store, *entry.requests) for entry in entries)


async def test_a_rewind_may_land_between_snapshots(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 6)
    await snapshot(store, meta, 4)
    meta = done(await open_at(store, attempt=SECOND, held=(3,)))
    assert (meta.committed, meta.snapshots, meta.oldest_checkpoint) == (3, (0,), 3)


async def test_an_older_attempt_is_stale_and_changes_nothing(store: Store) -> None:
    await begin(store)
    meta = done(await open_at(store, attempt=SECOND, worker="w2"))
    assert await open_at(store, attempt=FIRST, worker="w3") == StaleAttempt(stored=SECOND)
    assert await store.session(SESSION) == meta


async def test_the_same_number_of_another_device_process_is_stale(store: Store) -> None:
    meta = await begin(store)
    rival = Attempt(number=1, nonce="cccc")
    assert await open_at(store, attempt=rival, worker="w2") == StaleAttempt(stored=FIRST)
    assert await store.session(SESSION) == meta


async def test_another_job_is_named_and_changes_nothing(store: Store) -> None:
    meta = await begin(store)
    for attempt in (FIRST, SECOND):
        assert await open_at(store, attempt=attempt, job="1" * 64) == OtherJob(job_digest=JOB)
    assert await store.session(SESSION) == meta


async def test_a_stale_attempt_of_another_job_is_stale_first(store: Store) -> None:
    await begin(store)
    stale = Attempt(number=0, nonce="cccc")
    assert await open_at(store, attempt=stale, job="1" * 64) == StaleAttempt(stored=FIRST)


async def test_without_a_common_step_it_says_what_there_is_and_changes_nothing(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 6, oldest=5)
    meta = done(await snapshot(store, meta, 4))
    assert meta.snapshots == (4,)
    assert await open_at(store, attempt=SECOND, held=(0, 3, 7)) == NoCommonStep(oldest=4, committed=6)
    assert await open_at(store, attempt=SECOND, held=()) == NoCommonStep(oldest=4, committed=6)
    assert await store.session(SESSION) == meta
    assert done(await open_at(store, attempt=SECOND, held=(0, 3, 4, 7))).committed == 4


async def test_a_checkpoint_older_than_the_store_can_restore_does_not_hold_back_the_trim(
    store: Store,
) -> None:
    meta = await run_steps(store, await begin(store), 6, oldest=5)
    await snapshot(store, meta, 4)
    meta = done(await open_at(store, attempt=SECOND, held=(0, 5, 6)))
    assert (meta.committed, meta.oldest_checkpoint, meta.snapshots) == (6, 5, (4,))


async def test_attempt_numbers_are_exact_up_to_2_to_the_53(store: Store) -> None:
    largest = 2**53 - 1
    await begin(store)
    done(await open_at(store, attempt=Attempt(number=largest - 1, nonce="aaaa")))
    meta = done(await open_at(store, attempt=Attempt(number=largest, nonce="aaaa")))
    assert meta.attempt.number == largest
    stale = await open_at(store, attempt=Attempt(number=largest - 1, nonce="aaaa"))
    assert stale == StaleAttempt(stored=meta.attempt)


async def test_an_absurd_held_step_is_only_a_step_nobody_has(store: Store) -> None:
    await run_steps(store, await begin(store), 2)
    assert done(await open_at(store, attempt=SECOND, held=(2**53 - 1, 1, 0))).committed == 1


# Claims -------------------------------------------------------------------------------------------


async def test_a_claim_takes_the_session_over(store: Store) -> None:
    await run_steps(store, await begin(store), 2)
    meta = done(await store.claim(SESSION, attempt=FIRST, step=3, worker="w2"))
    assert (meta.owner, meta.committed, meta.attempt) == (Owner(fence=2, nonce="w2"), 2, FIRST)


async def test_the_owner_may_claim_again_and_keeps_its_fence(store: Store) -> None:
    meta = await begin(store)
    assert done(await store.claim(SESSION, attempt=FIRST, step=1, worker="w1")).owner == meta.owner


async def test_each_change_of_owner_raises_the_fence(store: Store) -> None:
    await begin(store)
    fences = [
        done(await store.claim(SESSION, attempt=FIRST, step=1, worker=worker)).owner.fence
        for worker in ("w2", "w1", "w2")
    ]
    assert fences == [2, 3, 4]


@pytest.mark.parametrize(("step", "outcome"), [(1, StepBehind), (2, Done), (3, Done), (4, StepBehind)])
async def test_a_claim_is_for_the_committed_step_or_the_next(store: Store, step: int, outcome: type) -> None:
    await run_steps(store, await begin(store), 2)
    claimed = await store.claim(SESSION, attempt=FIRST, step=step, worker="w2")
    assert isinstance(claimed, outcome)
    if isinstance(claimed, StepBehind):
        meta = await store.session(SESSION)
        assert claimed.committed == 2
        assert meta is not None
        assert meta.owner.nonce == "w1"


async def test_a_claim_in_an_older_or_newer_attempt_is_stale(store: Store) -> None:
    await begin(store)
    await open_at(store, attempt=SECOND)
    for attempt in (FIRST, Attempt(number=2, nonce="cccc"), Attempt(number=3, nonce="bbbb")):
        claimed = await store.claim(SESSION, attempt=attempt, step=1, worker="w2")
        assert claimed == StaleAttempt(stored=SECOND)


async def test_a_claim_of_an_unknown_session_says_so(store: Store) -> None:
    assert await store.claim(SESSION, attempt=FIRST, step=1, worker="w1") == UnknownSession()
    assert await store.session(SESSION) is None


async def test_a_restart_begins_at_step_0_of_whatever_job_and_keeps_the_fence_growing(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3)
    done(await snapshot(store, meta, 2))
    anew = done(await open_at(store, attempt=SECOND, job="1" * 64, restart=True))
    assert (anew.committed, anew.resume_step, anew.snapshots, anew.job_digest) == (0, 0, (0,), "1" * 64)
    assert anew.owner.fence == meta.owner.fence + 1
    assert anew.log_bytes == 0
    assert await logged_steps(store) == []
    assert isinstance(await commit(store, meta, 4), StaleAttempt)


async def test_a_repeated_restart_keeps_what_was_trained_since(store: Store) -> None:
    await run_steps(store, await begin(store), 3)
    meta = await run_steps(store, done(await open_at(store, attempt=SECOND, restart=True)), 2)
    assert done(await open_at(store, attempt=SECOND, restart=True)).committed == meta.committed == 2


async def test_an_older_attempt_restarts_nothing(store: Store) -> None:
    meta = await run_steps(store, done(await open_at(store, attempt=SECOND)), 1)
    assert await open_at(store, attempt=FIRST, restart=True) == StaleAttempt(stored=meta.attempt)


NEWER = "1" * 64


async def hand_over(store: Store, meta: SessionMeta) -> CommitOutcome:
    return await store.hand_over(
        meta.session, attempt=meta.attempt, owner=meta.owner, job_digest=NEWER, environment="elsewhere"
    )


async def test_another_version_goes_on_from_a_snapshot_and_nothing_older_is_left(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 5)
    done(await snapshot(store, meta, 3, b"older"))
    done(await snapshot(store, meta, 5, b"newest"))
    handed = done(await hand_over(store, meta))
    assert (handed.job_digest, handed.environment) == (NEWER, "elsewhere")
    assert (handed.committed, handed.resume_step, handed.oldest_checkpoint) == (5, 5, 5)
    assert (handed.snapshots, handed.log_bytes, handed.owner) == ((5,), 0, meta.owner)
    assert await store.read_snapshot(SESSION, 5) == {"weight": b"newest"}
    assert await logged_steps(store) == []
    assert done(await hand_over(store, meta)).snapshots == (5,), "a repeat changes nothing"
    again = done(await open_at(store, attempt=SECOND, held=(3, 4, 5), job=NEWER))
    assert (again.committed, again.snapshots) == (5, (5,))
    assert await open_at(store, attempt=Attempt(number=3, nonce="cc"), held=(5,)) == OtherJob(
        job_digest=NEWER
    )
    assert done(await commit_next(store, again)).committed == 6


async def commit_next(store: Store, meta: SessionMeta) -> CommitOutcome:
    step = meta.committed + 1
    await put(store, meta, step, b"f", b"b")
    return await commit(store, meta, step)


@pytest.mark.parametrize(("steps", "kept"), [(0, ()), (4, ()), (4, (2, 3))])
async def test_a_log_is_not_handed_over(store: Store, steps: int, kept: tuple[int, ...]) -> None:
    meta = await run_steps(store, await begin(store), steps)
    for step in kept:
        meta = done(await snapshot(store, meta, step))
    before = await store.session(SESSION)
    assert await hand_over(store, meta) == StepBehind(committed=steps)
    assert await store.session(SESSION) == before


async def test_only_the_owner_hands_over(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    done(await snapshot(store, meta, 1))
    taken = done(await store.claim(SESSION, attempt=FIRST, step=2, worker="w2"))
    assert await hand_over(store, meta) == StaleOwner(stored=taken.owner)
    newer = done(await open_at(store, attempt=SECOND, held=(1,)))
    assert await hand_over(store, taken) == StaleAttempt(stored=newer.attempt)
    assert await hand_over(store, replace(meta, session="digits.nobody")) == UnknownSession()
