"""Full-jitter backoff: how long to wait before trying again.

Each delay is uniform between 0 and a ceiling that grows up to a maximum, so that devices which lost
the broker together do not return together (Brooker, "Exponential Backoff And Jitter", AWS, 2015).

The delays so far take half of what their ceilings add up to. With a growth of 1.2 the next ceiling is
therefore some 0.4 of the time that has passed: who returns comes an eighth of the outage too late on
average, and a crowd spreads over nearly half of it. Doubling would be late by two thirds: after a tunnel of
3 s a phone would wait another two.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

BASE_S = 0.1
MAX_S = 10.0
GROWTH = 1.2


def full_jitter(
    *, base_s: float = BASE_S, max_s: float = MAX_S, growth: float = GROWTH, rng: random.Random | None = None
) -> Iterator[float]:
    """Delays in seconds, without end. It has no clock: the caller sleeps, and starts over after success."""
    if not (0 < base_s <= max_s and growth > 1):
        raise ValueError(
            f"backoff needs 0 < base_s <= max_s and growth > 1, not {base_s}, {max_s} and {growth}"
        )
    rng = rng or random.Random()
    ceiling = base_s
    while True:
        yield rng.uniform(0.0, ceiling)
        ceiling = min(ceiling * growth, max_s)
