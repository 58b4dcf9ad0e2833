"""The seeds after those of every `make test`."""

from __future__ import annotations

import pytest

from tests.simulation import sweep

pytestmark = pytest.mark.long


@pytest.mark.parametrize("number", range(sweep.LONG_SLICES))
def test_no_seed_violates_anything(number: int) -> None:
    sweep.check(sweep.PARTS, number)
