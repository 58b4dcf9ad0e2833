"""Full-jitter backoff: how long to wait before trying again.

Each delay is uniform between 0 and a ceiling that doubles up to a maximum, so that devices which lost
the broker together do not return together (Brooker, "Exponential Backoff And Jitter", AWS, 2015).
"""

from __future__ import annotations

import random
from collections.abc import Iterator


def full_jitter(
    *, base_s: float = 0.1, max_s: float = 10.0, rng: random.Random | None = None
) -> Iterator[float]:
    """Delays in seconds, without end. It has no clock: the caller sleeps, and begins anew after success."""
    if not 0 < base_s <= max_s:
        raise ValueError(f"backoff needs 0 < base_s <= max_s, not {base_s} and {max_s}")
    rng = rng or random.Random()
    ceiling = base_s
    while True:
        yield rng.uniform(0.0, ceiling)
        ceiling = min(ceiling * 2, max_s)
