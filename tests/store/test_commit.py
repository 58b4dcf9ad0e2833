"""The contract of `put_request`, `commit` and the log."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from server_worker.store import (
    Attempt,
    Blob,
    Done,
    Owner,
    StaleAttempt,
    StaleOwner,
    StepBehind,
    Store,
    UnknownSession,
)
from spliteasy.errors import StoreError, StoreUnavailable
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
    stored_bytes,
)


async def test_a_commit_moves_the_session_and_names_its_requests(store: Store) -> None:
    meta = await begin(store)
    await put(store, meta, 1, b"forward", b"backward")
    after = done(await commit(store, meta, 1, digest="ga"))
    assert (after.committed, after.log_bytes) == (1, stored_bytes(store, b"forward", b"backward"))
    assert (after.owner, after.attempt, after.snapshots) == (meta.owner, meta.attempt, (0,))
    assert after.updated_at >= meta.updated_at > 0
    assert await store.session(SESSION) == after
    (entry,) = await log_of(store, 0, 1)
    assert (entry.step, entry.requests, entry.gradient_digest) == (1, (b"forward", b"backward"), "ga")


async def test_the_same_commit_again_is_done_and_counts_once(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    again = done(await commit(store, meta, 2))
    assert (again.committed, again.log_bytes) == (2, meta.log_bytes)
    assert await logged_steps(store) == [1, 2]


async def test_a_step_committed_with_another_gradient_is_not_taken_for_a_repeat(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    assert await commit(store, meta, 2, digest="another") == StepBehind(committed=2)
    assert [entry.gradient_digest for entry in await log_of(store, 0, 2)] == ["ga1", "ga2"]


@pytest.mark.parametrize("step", [0, 1, 4])
async def test_only_the_next_step_can_be_committed(store: Store, step: int) -> None:
    meta = await run_steps(store, await begin(store), 2)
    await put(store, meta, step, b"f", b"b")
    assert await commit(store, meta, step) == StepBehind(committed=2)
    assert await logged_steps(store) == [1, 2]


async def test_a_commit_after_a_rewind_is_no_repeat_of_the_same_step_before(store: Store) -> None:
    await run_steps(store, await begin(store), 3)
    meta = done(await open_at(store, attempt=SECOND, held=(2,)))
    with pytest.raises(StoreError):  # its requests were of the first attempt
        await commit(store, meta, 3)
    assert await store.session(SESSION) == meta


async def test_a_zombie_owner_commits_nothing(store: Store) -> None:
    zombie = await run_steps(store, await begin(store), 1)
    await put(store, zombie, 2, b"zombie f", b"zombie b")
    owner = done(await store.claim(SESSION, attempt=FIRST, step=2, worker="w2"))
    assert await commit(store, zombie, 2) == StaleOwner(stored=owner.owner)
    await put(store, owner, 2, b"f2", b"b2")
    done(await commit(store, owner, 2))
    assert await commit(store, zombie, 2) == StaleOwner(stored=owner.owner)
    assert (await log_of(store, 1, 2))[0].requests == (b"f2", b"b2")


async def test_the_fence_alone_or_the_nonce_alone_is_not_enough(store: Store) -> None:
    meta = await begin(store)
    await put(store, meta, 1, b"f", b"b")
    for owner in (Owner(fence=1, nonce="w2"), Owner(fence=2, nonce="w1"), Owner(fence=0, nonce="w1")):
        await put(store, replace(meta, owner=owner), 1, b"f", b"b")
        assert await commit(store, replace(meta, owner=owner), 1) == StaleOwner(stored=meta.owner)
    assert (await store.session(SESSION)) == meta


async def test_an_earlier_attempt_commits_nothing(store: Store) -> None:
    old = await begin(store)
    await put(store, old, 1, b"old f", b"old b")
    new = done(await open_at(store, attempt=SECOND))
    assert await commit(store, old, 1) == StaleAttempt(stored=SECOND)
    rival = replace(new, attempt=Attempt(number=2, nonce="cccc"))
    assert await commit(store, rival, 1) == StaleAttempt(stored=SECOND)
    assert await store.session(SESSION) == new


async def test_a_commit_of_a_session_that_was_forgotten_says_so(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    await put(store, meta, 2, b"f", b"b")
    await store.forget(SESSION)
    assert await commit(store, meta, 2) == UnknownSession()
    assert await store.session(SESSION) is None


@pytest.mark.parametrize("present", [(), (b"only one",)])
async def test_a_commit_whose_request_is_missing_raises_and_changes_nothing(
    store: Store, present: tuple[bytes, ...]
) -> None:
    meta = await begin(store)
    await put(store, meta, 1, *present)
    with pytest.raises(StoreError, match=SESSION) as caught:
        await commit(store, meta, 1)
    assert not isinstance(caught.value, StoreUnavailable)
    assert await store.session(SESSION) == meta
    await put(store, meta, 1, b"f", b"b")
    assert done(await commit(store, meta, 1)).committed == 1


async def test_requests_of_another_owner_or_attempt_do_not_count(store: Store) -> None:
    meta = await begin(store)
    await put(store, replace(meta, owner=Owner(fence=1, nonce="w2")), 1, b"f", b"b")
    await put(store, replace(meta, attempt=SECOND), 1, b"f", b"b")
    await put(store, meta, 2, b"f", b"b")
    with pytest.raises(StoreError):
        await commit(store, meta, 1)


async def test_a_request_put_again_replaces_the_first(store: Store) -> None:
    meta = await begin(store)
    await put(store, meta, 1, b"forward", b"backward")
    await put(store, meta, 1, b"forward computed again")
    after = done(await commit(store, meta, 1))
    assert (await log_of(store, 0, 1))[0].requests == (b"forward computed again", b"backward")
    assert after.log_bytes == stored_bytes(store, b"forward computed again", b"backward")


async def test_a_request_that_arrives_after_its_commit_changes_nothing(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 1)
    await put(store, meta, 1, b"late", b"late")
    assert (await log_of(store, 0, 1))[0].requests == (b"f1", b"b1")
    assert (await run_steps(store, meta, 2)).committed == 2


async def test_bodies_of_any_kind_and_size_come_back_as_they_were(store: Store) -> None:
    meta = await begin(store)
    large = bytes(range(256)) * (20 * 4096)
    reused = memoryview(bytearray(large))
    bodies: list[Blob] = [large, bytearray(b"\x00\r\n$-1\r\n"), memoryview(b"abcdef")[1:4], b"", reused]
    for index, body in enumerate(bodies):
        await store.put_request(SESSION, attempt=FIRST, owner=meta.owner, step=1, index=index, body=body)
    after = done(await commit(store, meta, 1, requests=5))
    (entry,) = await log_of(store, 0, 1)
    assert entry.requests == (large, b"\x00\r\n$-1\r\n", b"bcd", b"", large)
    assert all(type(body) is bytes for body in entry.requests)
    assert after.log_bytes == stored_bytes(store, *map(bytes, bodies))


async def test_a_large_request_that_lies_in_pieces_is_one_again_and_counts_whole(store: Store) -> None:
    meta = await begin(store)
    mib = bytes(range(256)) * 4096
    bodies = (mib * 3 + b"end", b"small", mib, b"begin" + mib * 8)
    await put(store, meta, 1, *bodies)
    meta = done(await commit(store, meta, 1, requests=4))
    assert meta.log_bytes == stored_bytes(store, *bodies)
    assert (await log_of(store, 0, 1))[0].requests == bodies
    await snapshot(store, meta, 1)
    await put(store, meta, 2, b"")
    meta = done(await commit(store, meta, 2, requests=1, oldest=1))
    assert (meta.log_bytes, await logged_steps(store)) == (stored_bytes(store, b""), [2])


async def test_many_requests_of_one_step_keep_their_order(store: Store) -> None:
    meta = await begin(store)
    bodies = [b"micro %d" % index for index in range(40)]
    await put(store, meta, 1, *bodies)
    done(await commit(store, meta, 1, requests=40))
    assert (await log_of(store, 0, 1))[0].requests == tuple(bodies)


# Trims --------------------------------------------------------------------------------------------


async def test_the_log_stays_while_there_is_no_snapshot_to_begin_at(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 5, oldest=4)
    assert (meta.snapshots, meta.oldest_checkpoint) == ((0,), 4)
    assert await logged_steps(store) == [1, 2, 3, 4, 5]


async def test_a_commit_trims_to_the_newest_snapshot_that_the_device_can_go_back_to(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 6)
    for step in (2, 4, 6):
        meta = done(await snapshot(store, meta, step))
    assert meta.snapshots == (0, 2, 4, 6)
    await put(store, meta, 7, b"f7", b"b7")
    meta = done(await commit(store, meta, 7, oldest=5))
    assert (meta.snapshots, meta.oldest_checkpoint) == ((4, 6), 5)
    assert await logged_steps(store) == [5, 6, 7]
    assert meta.log_bytes == 3 * stored_bytes(store, b"f1", b"b1")
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 0)
    with pytest.raises(KeyError):
        await store.read_snapshot(SESSION, 2)


async def test_a_snapshot_at_the_oldest_checkpoint_itself_is_the_one_kept(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 4)
    await snapshot(store, meta, 2)
    meta = await run_steps(store, meta, 5, oldest=2)
    assert meta.snapshots == (2,)
    assert await logged_steps(store) == [3, 4, 5]


async def test_the_oldest_checkpoint_never_goes_back(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3, oldest=2)
    assert (await run_steps(store, meta, 4, oldest=1)).oldest_checkpoint == 2


async def test_the_reply_of_the_committed_step_stays_reproducible_whatever_a_device_says(
    store: Store,
) -> None:
    meta = await run_steps(store, await begin(store), 3, oldest=2**53 - 1)
    assert meta.oldest_checkpoint == 2
    meta = done(await snapshot(store, meta, 3))
    assert meta.snapshots == (0, 3)
    assert 3 in await logged_steps(store)


# Reads, and others at the same time ---------------------------------------------------------------


async def test_reading_the_log_in_parts(store: Store) -> None:
    await run_steps(store, await begin(store), 5)
    assert [entry.step for entry in await log_of(store, 2, 4)] == [3, 4]
    assert await log_of(store, 3, 3) == []


async def test_reading_past_either_end_of_the_log_raises_after_what_is_there(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 4, oldest=3)
    await snapshot(store, meta, 2)
    reader = store.read_log(SESSION, after=2, upto=9)
    assert [(await anext(reader)).step for _ in range(2)] == [3, 4]
    with pytest.raises(KeyError):
        await anext(reader)
    with pytest.raises(KeyError):
        await log_of(store, 1, 4)
    with pytest.raises(KeyError):
        await log_of(store, 0, 1, "digits.nobody")


async def test_a_log_read_that_is_given_up_leaves_the_store_usable(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 3)
    async for _ in store.read_log(SESSION, after=0, upto=3):
        break
    assert (await run_steps(store, meta, 4)).committed == 4


async def test_rival_workers_commit_each_step_once(store: Store) -> None:
    await begin(store)
    steps, winners = 12, []

    async def work(worker: str) -> None:
        step = 1
        while step <= steps:
            claimed = await store.claim(SESSION, attempt=FIRST, step=step, worker=worker)
            if isinstance(claimed, Done):
                await put(store, claimed.meta, step, worker.encode(), b"b")
                outcome = await commit(store, claimed.meta, step, digest=worker)
                if isinstance(outcome, Done):
                    winners.append((step, worker))
            meta = await store.session(SESSION)
            assert meta is not None
            step = meta.committed + 1
            await asyncio.sleep(0)

    await asyncio.gather(*(work(f"w{number}") for number in range(4)))
    assert [step for step, _ in sorted(winners)] == list(range(1, steps + 1))
    entries = await log_of(store, 0, steps)
    assert [(entry.step, entry.gradient_digest) for entry in entries] == sorted(winners)
    assert all(entry.requests[0] == entry.gradient_digest.encode() for entry in entries)


async def test_many_sessions_at_once_do_not_mix(store: Store) -> None:
    names = [f"job-{number % 3}.phone-{number}" for number in range(30)]

    async def train(name: str) -> None:
        meta = await begin(store, name)
        for step in range(1, 6):
            await put(store, meta, step, name.encode(), b"%d" % step)
            meta = done(await commit(store, meta, step, digest=f"{name}-{step}"))

    await asyncio.gather(*map(train, names))
    for name in names:
        entries = await log_of(store, 0, 5, name)
        assert [entry.requests for entry in entries] == [(name.encode(), b"%d" % k) for k in range(1, 6)]
        assert entries[4].gradient_digest == f"{name}-5"
    assert [meta.session for meta in await store.sessions()] == sorted(names)
