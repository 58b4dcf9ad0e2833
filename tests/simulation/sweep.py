"""The seeds of every `make test`, in parts: each part is a file of tests, and files run beside each other.

`make test-long` plays those after them, and `make simulate SEEDS=10000` any number.
"""

from __future__ import annotations

from collections import Counter

from tests.simulation.run import play

PARTS = 4
SLICES = 2
"""The slices of each part; each is a test, with a time limit of its own."""
LONG_SLICES = 12
"""The slices of `make test-long`: one more part, after all others."""

SEEDS = 100
"""The seeds of each slice."""

MUST_HAPPEN = ("zombie", "store lost commits", "checkpoints lost", "duplicate")


def check(part: int, number: int) -> None:
    """Play one slice of one part: no seed violates anything, under faults at every message and store call."""
    first = (part * SLICES + number) * SEEDS
    faults: Counter[str] = Counter()
    for seed in range(first, first + SEEDS):
        summary = play(seed)
        if summary.violations:
            raise AssertionError(f"{summary.violations[0]}; replay with: make simulate SEED={seed}")
        faults += summary.faults
    missing = [kind for kind in MUST_HAPPEN if not faults[kind]]
    if missing:
        raise AssertionError(f"no fault of these kinds in {SEEDS} seeds: {', '.join(missing)}")
