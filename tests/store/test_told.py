"""The contract of what operators say and see: pause, the agent's version, loss curves."""

from __future__ import annotations

from itertools import pairwise

from server_worker.store import Attempt, Store
from server_worker.store.base import MAX_LOSSES
from server_worker.store.rules import thinned
from tests.store.steps import SECOND, SESSION, begin, done, open_at, run_steps


async def test_a_pause_is_told_by_every_outcome_and_moves_nothing(store: Store) -> None:
    meta = await run_steps(store, await begin(store), 2)
    assert await store.pause(SESSION, True)
    paused = await store.session(SESSION)
    assert paused is not None
    assert paused.paused
    assert (paused.committed, paused.owner, paused.updated_at) == (2, meta.owner, meta.updated_at)
    assert (await run_steps(store, meta, 3)).paused, (
        "a step that is under way ends, and its owner hears of it"
    )
    assert await store.pause(SESSION, False)
    assert not (await run_steps(store, paused, 4)).paused


async def test_a_pause_outlives_attempts_and_a_restart_but_not_the_session(store: Store) -> None:
    await begin(store)
    await store.pause(SESSION, True)
    assert done(await open_at(store, attempt=SECOND)).paused
    assert done(await open_at(store, attempt=Attempt(number=3, nonce="cc"), restart=True)).paused
    await store.forget(SESSION)
    assert not (await begin(store)).paused
    assert not await store.pause("digits.nobody", True)


async def test_the_version_is_that_of_the_agent_that_opened_the_attempt(store: Store) -> None:
    assert done(await open_at(store)).agent == ""
    names = {"job_digest": "0" * 64, "held": (0,), "worker": "w1", "environment": "e"}
    for number, agent in ((2, "1.0"), (3, "1.1")):
        attempt = Attempt(number=number, nonce="aa")
        outcome = await store.open_session(SESSION, attempt=attempt, agent=agent, total_steps=number, **names)  # type: ignore[arg-type]
        assert (done(outcome).agent, done(outcome).total_steps) == (agent, number)


async def test_a_loss_curve_is_kept_with_its_session(store: Store) -> None:
    await store.add_losses(SESSION, {1: 2.5})
    assert await store.losses(SESSION) == {}, "there is no such session"
    await begin(store)
    await store.add_losses(SESSION, {2: 0.1 + 0.2, 1: 2.5})
    await store.add_losses(SESSION, {2: 1e-300, 3: -4.0})
    assert list((await store.losses(SESSION)).items()) == [(1, 2.5), (2, 1e-300), (3, -4.0)]
    await store.forget(SESSION)
    assert await store.losses(SESSION) == {}


async def test_a_long_loss_curve_is_thinned_out_evenly(store: Store) -> None:
    await begin(store)
    for start in range(1, 6000, 700):
        await store.add_losses(SESSION, {step: float(step) for step in range(start, start + 700)})
    found = list(await store.losses(SESSION))
    assert MAX_LOSSES // 4 < len(found) <= MAX_LOSSES
    gaps = [after - before for before, after in pairwise(found)]
    assert max(gaps) <= 32, "no part of the curve is lost"
    assert (await store.losses(SESSION))[found[-1]] == found[-1]


def test_what_is_few_is_not_thinned() -> None:
    assert thinned(range(MAX_LOSSES)) == set()
    assert thinned([4] * 9, limit=2) == set()
    assert thinned(range(1, 10), limit=4) == {1, 2, 3, 5, 6, 7, 9}


async def test_deliveries_of_a_request_are_counted_until_it_ends(store: Store) -> None:
    assert await store.begin_delivery(SESSION, "aa") == 0, "there is no such session"
    await begin(store)
    assert [await store.begin_delivery(SESSION, "aa") for _ in range(3)] == [1, 2, 3]
    assert await store.begin_delivery(SESSION, "bb") == 1
    await store.end_delivery(SESSION, "aa")
    await store.end_delivery(SESSION, "nothing")
    assert await store.begin_delivery(SESSION, "aa") == 1
    assert await store.begin_delivery(SESSION, "bb") == 2
    await store.forget(SESSION)
    await begin(store)
    assert await store.begin_delivery(SESSION, "bb") == 1


async def test_deliveries_that_nobody_has_read_are_counted_without_a_session(store: Store) -> None:
    assert [await store.begin_delivery(None, "aa") for _ in range(3)] == [1, 2, 3]
    assert await store.begin_delivery(None, "bb") == 1
    await store.end_delivery(None, "aa")
    assert await store.begin_delivery(None, "aa") == 1
    assert await store.sessions() == []
