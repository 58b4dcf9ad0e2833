"""An epoch over an emulated link, with activations of a frozen head sent each time, and named.

    python -m benchmarks.cache [--profiles lte] [--epochs 3]

Two devices train the same model on the same worker by turns, an epoch each. One job says `cache = false`.
In the first epoch both send every activation; from the second on the other one names those that the worker
keeps. Gradients of the body's outputs, and these outputs, cross in either case: what can be saved depends on
how much of a step the activations are. So there are two second cuts, one where much crosses and one where
little does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Contestant, Field, Services, services
from benchmarks.harness.submission import enter_ours
from benchmarks.harness.workloads import FROZEN, FROZEN_POOLED, SAMPLES, Setting

CASES = {FROZEN.name: FROZEN, FROZEN_POOLED.name: FROZEN_POOLED}
STEPS = SAMPLES // FROZEN.batch
"""The steps of an epoch."""
EPOCHS = 3
GOAL = 0.5
"""At least this share of the bytes of an epoch is to be saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One way over one link: seconds and bytes of an epoch."""

    workload: str
    profile: str
    cache: bool
    first_up: float
    """Bytes sent in the first epoch."""
    bytes_up: float
    """The median of those of the later epochs."""
    bytes_down: float
    epoch_s: float

    @property
    def nbytes(self) -> float:
        """The bytes of a later epoch, both ways."""
        return self.bytes_up + self.bytes_down


def measure(running: Services, workload: str, profile: str, *, epochs: int = EPOCHS) -> list[Figure]:
    """Both ways take turns, an epoch each: the first, and then so many."""
    with Field(running) as field:
        worker = field.worker()
        broker = field.emulator(profile).url
        for cache in (True, False):
            name = f"{profile} {'named' if cache else 'sent'}"
            enter_ours(field, CASES[workload], name, Setting(cache=cache), worker, broker=broker)
        for epoch in range(epochs + 1):
            for contestant in field.contestants:
                # The step before the first lap belongs to the first epoch.
                contestant.lap(STEPS if epoch else STEPS - 1)
                print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return [
            _figure(workload, profile, cache, contestant)
            for cache, contestant in zip((True, False), field.contestants, strict=True)
        ]


def _figure(workload: str, profile: str, cache: bool, contestant: Contestant) -> Figure:
    first, *later = contestant.told
    return Figure(
        workload=workload,
        profile=profile,
        cache=cache,
        first_up=first["up"] * STEPS / (STEPS - 1),
        bytes_up=statistics.median(each["up"] for each in later),
        bytes_down=statistics.median(each["down"] for each in later),
        epoch_s=statistics.median(sum(seconds) for seconds in contestant.seconds[1:]),
    )


def table_of(figures: Sequence[Figure]) -> Table:
    """Set the ways of each case side by side."""
    rows = []
    for one in figures:
        (sent,) = (
            each
            for each in figures
            if (each.workload, each.profile, each.cache) == (one.workload, one.profile, False)
        )
        saved = 1 - one.nbytes / sent.nbytes
        rows.append(
            [
                "before the pool" if one.workload == FROZEN.name else "behind the pool",
                one.profile,
                "named" if one.cache else "sent each time",
                f"{one.first_up / 1e6:.1f}",
                f"{one.bytes_up / 1e6:.2f}",
                f"{one.bytes_down / 1e6:.2f}",
                f"{one.epoch_s:.1f}",
                f"−{saved:.0%}" if one.cache else "",
                goal(f"−{GOAL:.0%} bytes", saved >= GOAL) if one.cache else "",
            ]
        )
    head = ["second cut", "link", "activations", "MB up, first epoch", "MB up", "MB down", "s an epoch"]
    return Table("Epochs of a device with a frozen head", [*head, "bytes", "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--profiles", nargs="+", default=["lte"])
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    began = show_about()
    figures = []
    with services() as running:
        for profile in options.profiles:
            for workload in CASES:
                figures += measure(running, workload, profile, epochs=options.epochs)
    table = table_of(figures)
    table.show()
    save("cache", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
