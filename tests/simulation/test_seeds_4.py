"""The fourth part of the seeds."""

from __future__ import annotations

import pytest

from tests.simulation import sweep


@pytest.mark.parametrize("number", range(sweep.SLICES))
def test_no_seed_violates_anything(number: int) -> None:
    sweep.check(3, number)
