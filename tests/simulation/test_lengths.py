"""Simulated samples with lengths: whatever is lost or killed, the training is the undisturbed one."""

from __future__ import annotations

import pytest

from tests.simulation.faults import CALM, FREQUENT
from tests.simulation.run import play
from tests.simulation.toy import DEVICES, WITH_LENGTHS, Variant

IDS = ["two cuts", "one cut"]


@pytest.mark.parametrize("variant", WITH_LENGTHS, ids=IDS)
def test_a_calm_training_is_the_undisturbed_one(variant: Variant) -> None:
    assert play(0, rates=CALM, variant=variant, devices=("phone-1",)).violations == ()


@pytest.mark.parametrize("variant", WITH_LENGTHS, ids=IDS)
@pytest.mark.parametrize("seed", range(3))
def test_faults_change_no_bit(seed: int, variant: Variant) -> None:
    assert play(seed, rates=FREQUENT, variant=variant, devices=DEVICES).violations == ()
