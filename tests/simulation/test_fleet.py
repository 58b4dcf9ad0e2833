"""Fleets under seeded faults: rounds close once, on durable decisions, with the bits of the plain program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from server_worker.action import Steps
from server_worker.replica.loaded_body import LoadedBody, StepResult
from server_worker.rounds import turn
from server_worker.rounds.ends import mean_bytes
from server_worker.store import Store
from server_worker.store.fleet_calls import ReadLossWindow, ReadWeightsOf
from spliteasy.fleet.record import RoundRecord
from tests.simulation import toy
from tests.simulation.faults import CALM, Rates
from tests.simulation.run import play

FREQUENT = Rates(
    cut=0.01,
    cut_after=0.01,
    zombie=0.02,
    agent_crash_s=4.0,
    worker_crash_s=6.0,
    rollback_s=5.0,
    checkpoints_lost=0.0,
    state_lost=0.0,
)
SEEDS = 4


@pytest.mark.parametrize("variant", [toy.PLAIN_FLEET, toy.SEALED_FLEET], ids=["plain", "sealed"])
def test_a_calm_fleet_is_federated_averaging(variant: toy.Variant) -> None:
    assert play(0, rates=CALM, variant=variant, devices=toy.FLEET).violations == ()


@pytest.mark.parametrize("variant", [toy.PLAIN_FLEET, toy.SEALED_FLEET], ids=["plain", "sealed"])
def test_a_fleet_under_faults_loses_and_repeats_no_round(variant: toy.Variant) -> None:
    for seed in range(SEEDS):
        summary = play(seed, rates=FREQUENT, variant=variant, devices=toy.FLEET)
        assert summary.violations == (), f"seed {seed}"


# Broken on purpose --------------------------------------------------------------------------------


def act_before_the_decision_is_durable() -> Any:
    async def at_once(self: ReadLossWindow, store: Store) -> float:
        return 0.0

    return mock.patch.object(ReadLossWindow, "call", at_once)


def mean_over_who_is_there_now() -> Any:
    def mean_of(number: int, fleet: str) -> Steps[bytes]:
        record: RoundRecord = yield from turn.record_of(number, fleet)
        members = yield from turn.read_members(fleet)
        there = {device: record.participants[device] for device in members if device in record.participants}
        some = dict(list(there.items())[1:] or list(there.items()))
        fewer = record.model_copy(update={"participants": some})
        bodies = {}
        for device in some:
            name = turn.weights_name(number, device)
            bodies[device] = yield from ReadWeightsOf(fleet, name)
        return mean_bytes(fewer, bodies)

    right = turn.mean_of
    return mock.patch.object(
        turn, "mean_of", lambda number, fleet: mean_of(number, fleet) if number else right(0, fleet)
    )


def count_samples_of_rounds_before() -> Any:
    rebase = LoadedBody.rebase

    def kept(self: LoadedBody, *args: Any) -> Steps[StepResult]:
        samples = self.samples
        result = yield from rebase(self, *args)
        self.samples = samples
        return result

    return mock.patch.object(LoadedBody, "rebase", kept)


@pytest.mark.parametrize(
    ("mutation", "rates"),
    [
        (act_before_the_decision_is_durable, FREQUENT),
        (mean_over_who_is_there_now, CALM),
        (count_samples_of_rounds_before, CALM),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_a_broken_fleet_is_caught(mutation: Callable[[], Any], rates: Rates) -> None:
    for seed in range(40):
        with mutation():
            broken = play(seed, rates=rates, variant=toy.PLAIN_FLEET, devices=toy.FLEET)
        if broken.violations:
            whole = play(seed, rates=rates, variant=toy.PLAIN_FLEET, devices=toy.FLEET)
            assert whole.violations == ()
            return
    pytest.fail("40 seeds did not notice")
