"""Fleets under seeded faults: rounds close once, on durable decisions, with the bits of the plain program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import pytest
from torch import Tensor

from device_agent.rounds.ends import RoundEnds
from device_agent.session.plan import SessionPlan
from device_agent.training.trainer import DeviceTrainer
from server_worker.action import Steps
from server_worker.engine import body_trainer, local, shared_body
from server_worker.engine.body_trainer import BODY
from server_worker.replica.loaded_body import LoadedBody, RoundAbout, StepResult
from server_worker.rounds import turn
from server_worker.rounds.ends import mean_bytes
from server_worker.rounds.turn import RoundTurns
from server_worker.store import SqliteStore, Store
from server_worker.store.fleet_calls import AppendRound, ReadLossWindow, ReadWeightsOf
from spliteasy.fleet.record import RoundRecord
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.training.segment_trainer import MODEL_PREFIX, OPTIMIZER_PREFIX
from tests.simulation import fleet, toy, world
from tests.simulation.churn import ChurningWorld
from tests.simulation.faults import CALM, Rates
from tests.simulation.run import play
from tests.simulation.test_simulation import skip_the_attempt_check

FREQUENT = Rates(
    cut=0.01,
    cut_after=0.01,
    zombie=0.02,
    agent_crash_s=10.0,
    worker_crash_s=10.0,
    rollback_s=12.0,
    checkpoints_lost=0.0,
    state_lost=0.0,
)
AGENTS_DIE = replace(CALM, agent_crash_s=4.0)
SEEDS = 2
"""The sweep over many seeds draws fleets too; the long tests play more of these."""
TEN = tuple(f"phone-{number}" for number in range(1, 11))


@pytest.mark.parametrize("variant", toy.FLEETS.values(), ids=toy.FLEETS)
def test_a_calm_fleet_is_its_plain_program(variant: toy.Variant) -> None:
    assert play(0, rates=CALM, variant=variant, devices=toy.FLEET).violations == ()


@pytest.mark.parametrize("variant", toy.FLEETS.values(), ids=toy.FLEETS)
def test_a_fleet_under_faults_loses_and_repeats_no_round(variant: toy.Variant) -> None:
    under_faults(range(SEEDS), variant)


@pytest.mark.long
@pytest.mark.parametrize("variant", toy.FLEETS.values(), ids=toy.FLEETS)
def test_a_fleet_under_faults_loses_and_repeats_no_round_under_more_seeds(variant: toy.Variant) -> None:
    under_faults(range(SEEDS, 30), variant)


def under_faults(seeds: range, variant: toy.Variant) -> None:
    for seed in seeds:
        summary = play(seed, rates=FREQUENT, variant=variant, devices=toy.FLEET)
        assert summary.violations == (), f"seed {seed}"


@pytest.mark.parametrize(
    ("share", "variant"), [(0.1, toy.SEALED_FLEET), (1 / 3, toy.PLAIN_SHARED), (1 / 3, toy.SEALED_RELAY)]
)
def test_no_round_waits_past_its_deadline_where_devices_are_killed_in_each(
    share: float, variant: toy.Variant
) -> None:
    assert churning(0, share, variant) == ()


@pytest.mark.long
@pytest.mark.parametrize("share", [0.1, 1 / 3])
@pytest.mark.parametrize("variant", toy.FLEETS.values(), ids=toy.FLEETS)
def test_no_round_waits_past_its_deadline_under_more_seeds(share: float, variant: toy.Variant) -> None:
    for seed in range(1, 9):
        assert churning(seed, share, variant) == (), f"seed {seed}"


def churning(seed: int, share: float, variant: toy.Variant) -> tuple[str, ...]:
    """Play a fleet of ten of which that share is killed in each round: what was violated."""
    summary = play(
        seed,
        rates=CALM,
        variant=replace(variant, epochs=2),
        devices=TEN,
        make=partial(ChurningWorld, share=share),
    )
    assert summary.faults["device killed in its round"]
    return summary.violations


# Broken on purpose --------------------------------------------------------------------------------


def act_before_the_decision_is_durable() -> Any:
    async def at_once(self: ReadLossWindow, store: Store) -> float:
        return 0.0

    return mock.patch.object(ReadLossWindow, "call", at_once)


def mean_over_who_is_there_now() -> Any:
    def mean_of(number: int, loaded: LoadedBody) -> Steps[bytes]:
        fleet = turn.fleet_of(loaded)
        record: RoundRecord = yield from turn.record_of(number, fleet)
        members = yield from turn.read_members(fleet)
        there = {device: record.participants[device] for device in members if device in record.participants}
        some = dict(list(there.items())[1:] or list(there.items()))
        fewer = record.model_copy(update={"participants": some})
        bodies = {}
        for device in some:
            name = turn.weights_name(number, device, some[device].digest)
            bodies[device] = yield from ReadWeightsOf(fleet, name)
        return mean_bytes(loaded.job, fewer, bodies)

    right = turn.mean_of
    return mock.patch.object(
        turn, "mean_of", lambda number, loaded: mean_of(number, loaded) if number else right(0, loaded)
    )


def count_samples_of_rounds_before() -> Any:
    rebase = LoadedBody.rebase

    def kept(self: LoadedBody, *args: Any) -> Steps[StepResult]:
        samples = self.samples
        result = yield from rebase(self, *args)
        self.samples = samples
        return result

    return mock.patch.object(LoadedBody, "rebase", kept)


def take_over_the_body_without_its_optimizer() -> Any:
    right = body_trainer.rebased

    def rebased(state: Any, mean: Any, fleet: Any) -> Any:
        found = right(state, mean, fleet)
        return {name: x for name, x in found.items() if not name.startswith(OPTIMIZER_PREFIX)}

    return mock.patch.object(body_trainer, "rebased", rebased)


def keep_ends_at_the_end_of_a_round() -> Any:
    right = turn.RoundAbout

    def kept(**facts: Any) -> RoundAbout:
        return right(**{**facts, "ends": "kept"})

    return mock.patch.object(turn, "RoundAbout", kept)


def step_the_body_without_one_of_the_window() -> Any:
    right = local.window_step

    def fewer(job: Any, record: RoundRecord, bodies: Any, before: bytes) -> bytes:
        some = dict(list(record.participants.items())[1:]) or record.participants
        return right(job, record.model_copy(update={"participants": some}), bodies, before)

    return mock.patch.object(local, "window_step", fewer)


def begin_the_optimizer_of_the_body_again_at_each_window() -> Any:
    right = local.window_step

    def anew(job: Any, record: RoundRecord, bodies: Any, before: bytes) -> bytes:
        tensors = tensors_from_bytes(before) if before else {}
        kept = {name: x for name, x in tensors.items() if not name.startswith(BODY + OPTIMIZER_PREFIX)}
        return right(job, record, bodies, tensors_to_bytes(kept) if before else b"")

    return mock.patch.object(local, "window_step", anew)


def average_the_count_of_batches() -> Any:
    right = shared_body.weighted_mean

    def averaged(parts: Any) -> Any:
        return {name: x if x.is_floating_point() else x // 2 for name, x in right(parts).items()}

    return mock.patch.object(shared_body, "weighted_mean", averaged)


def name_a_record_by_its_number_alone() -> Any:
    right = AppendRound.call

    async def appended(self: AppendRound, store: Store) -> bytes | None:
        newest = await store.fleets.newest_round(self.fleet)
        if newest is not None and RoundRecord.from_json(newest).number == self.number - 1:
            return await right(replace(self, previous=newest), store)
        return await right(self, store)

    return mock.patch.object(AppendRound, "call", appended)


def step_the_ends_of_a_late_member() -> Any:
    right = RoundTurns._answer

    def answer(self: RoundTurns, loaded: LoadedBody, newest: RoundRecord, *rest: Any) -> Steps[turn.Outcome]:
        request = self.request
        assert request is not None
        found = yield from right(self, loaded, newest, *rest)
        if isinstance(found, turn.Turn) and request.round and request.device not in newest.participants:
            return turn.Turn(replace(found.about, ends="kept", sealed=None), found.mean)
        return found

    return mock.patch.object(RoundTurns, "_answer", answer)


def take_the_mean_without_a_step_of_its_own() -> Any:
    """The checkpoint of that step is that of the step before, under another number; there are no others."""
    take, state = RoundEnds.take_mean, DeviceTrainer.state
    before: dict[int, tuple[int, dict[str, Tensor]]] = {}

    def taken(self: RoundEnds, mean: Any, **about: Any) -> None:
        own = {
            prefix + name: tensor
            for prefix, trainer in self.ends
            for name, tensor in trainer.snapshot().items()
            if name.startswith(MODEL_PREFIX)
        }
        take(self, mean, **about)
        before[id(self)] = self.ends[0][1].step, own

    def kept(self: DeviceTrainer) -> dict[str, Tensor]:
        step, own = before.get(id(self.rounds), (-1, {}))
        return {**state(self), **(own if step == self.step else {})}

    patches = ExitStack()
    patches.enter_context(mock.patch.object(RoundEnds, "take_mean", taken))
    patches.enter_context(mock.patch.object(DeviceTrainer, "state", kept))
    patches.enter_context(mock.patch.object(SessionPlan, "keeps", SessionPlan.is_round_end))
    return patches


def go_back_across_a_mean() -> Any:
    return mock.patch.object(SessionPlan, "keeps", lambda self, step: step % 100 == 0)


@pytest.mark.parametrize(
    ("mutation", "rates", "variant"),
    [
        (act_before_the_decision_is_durable, FREQUENT, toy.PLAIN_FLEET),
        (mean_over_who_is_there_now, CALM, toy.PLAIN_FLEET),
        (count_samples_of_rounds_before, CALM, toy.PLAIN_FLEET),
        (take_over_the_body_without_its_optimizer, CALM, toy.PLAIN_RELAY),
        (act_before_the_decision_is_durable, FREQUENT, toy.PLAIN_SHARED),
        (keep_ends_at_the_end_of_a_round, CALM, toy.PLAIN_SHARED),
        (step_the_body_without_one_of_the_window, CALM, toy.PLAIN_SHARED),
        (begin_the_optimizer_of_the_body_again_at_each_window, CALM, toy.PLAIN_SHARED),
        (average_the_count_of_batches, CALM, toy.PLAIN_SHARED),
        (step_the_ends_of_a_late_member, FREQUENT, toy.PLAIN_SHARED),
        (take_the_mean_without_a_step_of_its_own, AGENTS_DIE, toy.PLAIN_FLEET),
        (go_back_across_a_mean, FREQUENT, toy.PLAIN_SHARED),
        (skip_the_attempt_check, FREQUENT, toy.PLAIN_SHARED),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_broken_fleet_is_caught(
    mutation: Callable[[], Any], rates: Rates, variant: toy.Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without faults a training ends within a minute, and under these within three.
    monkeypatch.setattr(world, "DEADLINE_S", 300.0 if rates is CALM else 900.0)
    for seed in range(40):
        with mutation():
            broken = play(seed, rates=rates, variant=variant, devices=toy.FLEET)
        if broken.violations:
            whole = play(seed, rates=rates, variant=variant, devices=toy.FLEET)
            assert whole.violations == ()
            return
    pytest.fail("40 seeds did not notice")


def test_a_record_that_was_made_anew_is_not_taken_for_the_first_one() -> None:
    """A worker hangs before it writes round 2, the store forgets round 1, and others end it otherwise."""
    assert asyncio.run(_decided_on_a_forgotten_round()) == []
    with name_a_record_by_its_number_alone():
        broken = asyncio.run(_decided_on_a_forgotten_round())
    assert broken == ["record 2 does not follow the one before"]


async def _decided_on_a_forgotten_round() -> list[str]:
    """What is wrong with the chain after it."""
    store, name = SqliteStore(None, inline=True, clock=lambda: 0.0), "toy@0"
    begun = RoundRecord(
        number=0, previous="", participants={}, weights={}, base=0, cohort=toy.FLEET, closed_at=0.0
    )
    first, anew = (
        begun.model_copy(update={"number": 1, "previous": begun.digest, "there": there}) for there in (2, 3)
    )
    second = begun.model_copy(update={"number": 2, "previous": first.digest})
    try:
        await AppendRound(name, begun.to_json(), 0, None, ()).call(store)
        image = store.image()
        await AppendRound(name, first.to_json(), 1, begun.to_json(), ()).call(store)
        store.restore(image)
        await AppendRound(name, anew.to_json(), 1, begun.to_json(), ()).call(store)
        await AppendRound(name, second.to_json(), 2, first.to_json(), ()).call(store)
        return fleet.chain([RoundRecord.from_json(line) for line in await store.fleets.rounds(name)])
    finally:
        await store.close()
