"""Full-jitter backoff: bounded, growing, and the same for the same seed."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from broker import full_jitter


def test_delays_stay_under_a_ceiling_that_grows_up_to_the_maximum() -> None:
    ceilings = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]
    largest = [0.0] * len(ceilings)
    for seed in range(300):
        delays = list(
            islice(full_jitter(base_s=0.1, max_s=1.0, growth=2.0, rng=random.Random(seed)), len(ceilings))
        )
        assert all(0 <= delay <= ceiling for delay, ceiling in zip(delays, ceilings, strict=True))
        largest = [max(pair) for pair in zip(largest, delays, strict=True)]
    assert all(top > 0.9 * ceiling for top, ceiling in zip(largest, ceilings, strict=True))


def test_the_same_seed_waits_alike_and_others_do_not() -> None:
    first, again, other = (list(islice(full_jitter(rng=random.Random(seed)), 5)) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("outage_s", [1.0, 3.0, 12.0])
def test_who_returns_is_late_by_a_small_part_of_the_outage_and_a_crowd_is_spread_over_more(
    outage_s: float,
) -> None:
    late = []
    for seed in range(1000):
        delays, passed_s = full_jitter(rng=random.Random(seed)), 0.0
        while passed_s < outage_s:
            passed_s += next(delays)
        late.append(passed_s - outage_s)
    assert sum(late) / len(late) < 0.2 * outage_s
    assert max(late) > 0.3 * outage_s


@pytest.mark.parametrize(
    ("base_s", "max_s", "growth"), [(0.0, 1.0, 2.0), (-1.0, 1.0, 2.0), (2.0, 1.0, 2.0), (0.1, 1.0, 1.0)]
)
def test_nonsense_is_refused(base_s: float, max_s: float, growth: float) -> None:
    with pytest.raises(ValueError, match="base_s"):
        next(full_jitter(base_s=base_s, max_s=max_s, growth=growth))
