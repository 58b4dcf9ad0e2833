"""Step time over emulated links, against what the link and the computation allow at best.

    python -m benchmarks.links [--profiles lte 3g] [--codecs fp32 int8] [--micro-batches 1 4]

With one micro-batch (M = 1) a step is four messages and three computations, each waiting for the one before,
so the bound is compute + bytes up ÷ rate + bytes down ÷ rate + two round trips. With several, sending
either way and computing may overlap: the bound is the longest of the three + two round trips, which
no finite M quite reaches. Compute is the step time of the same model in one plain process at
the same time; the time that encoding and decoding need is not in the bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.emulator.profiles import PROFILES, Profile
from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, services
from benchmarks.harness.submission import enter_ours
from benchmarks.harness.workloads import WORKLOADS, Setting

CODECS = ("fp32", "fp16", "int8", "topk:0.05")
MICRO_BATCHES = (1, 4)
CASES = {("W0", "lte"): 15, ("W0", "3g"): 3, ("W1", "lte"): 2}
"""Steps of a lap by workload and link: a lap takes some seconds."""
LAPS = 3
GOAL = 1.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One codec over one link: seconds and bytes a step."""

    workload: str
    profile: str
    codec: str
    micro_batches: int
    step_s: float
    compute_s: float
    bound_s: float
    bytes_up: float
    bytes_down: float

    @property
    def ratio(self) -> float:
        return self.step_s / self.bound_s


def bound_s(profile: Profile, compute_s: float, up: float, down: float, micro_batches: int = 1) -> float:
    """The least that a step takes; `up` and `down` in bytes."""
    rates = ((up, profile.up_bytes_s), (down, profile.down_bytes_s))
    stages = [compute_s, *(size / rate for size, rate in rates if rate)]
    return (sum(stages) if micro_batches == 1 else max(stages)) + 4 * profile.latency_s


def measure(
    running: Services,
    workload: str,
    profile: str,
    settings: Sequence[Setting],
    *,
    steps: int,
    laps: int = LAPS,
) -> list[Figure]:
    """All settings take turns; each has the link for itself then."""
    one = WORKLOADS[workload]
    with Field(running) as field:
        worker = field.worker()
        broker = field.emulator(profile).url
        plain = field.enter("plain", ["-m", "benchmarks.peers", "plain", "device", workload], {})
        for setting in settings:
            name = f"{setting.activations} {profile} {setting.micro_batches}"
            enter_ours(field, one, name, setting, worker, broker=broker)
        for _ in range(laps):
            for contestant in field.contestants:
                contestant.lap(steps)
                print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        compute_s = statistics.median(second for lap in plain.seconds for second in lap)
        figures = []
        for setting, contestant in zip(settings, field.contestants[1:], strict=True):
            up, down = (
                statistics.median(lap[way] for lap in contestant.told) / steps for way in ("up", "down")
            )
            figures.append(
                Figure(
                    workload=workload,
                    profile=profile,
                    codec=setting.activations,
                    micro_batches=setting.micro_batches,
                    step_s=statistics.median(second for lap in contestant.seconds for second in lap),
                    compute_s=compute_s,
                    bound_s=bound_s(PROFILES[profile], compute_s, up, down, setting.micro_batches),
                    bytes_up=up,
                    bytes_down=down,
                )
            )
        return figures


def table_of(figures: Sequence[Figure]) -> Table:
    """Measure one workload over one link."""
    rows = [
        [
            one.codec,
            str(one.micro_batches),
            f"{one.bytes_up / 1000:.1f}",
            f"{one.bytes_down / 1000:.1f}",
            f"{one.step_s * 1000:.0f}",
            f"{one.bound_s * 1000:.0f}",
            f"{one.ratio:.2f}",
            goal(f"≤ {GOAL}", one.ratio <= GOAL),
        ]
        for one in figures
    ]
    first = figures[0]
    return Table(
        f"{first.workload} over {first.profile}, compute {first.compute_s * 1000:.0f} ms",
        ["codec", "M", "kB up", "kB down", "ms a step", "bound ms", "step ÷ bound", "goal"],
        rows,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__)
    parser.add_argument("--profiles", nargs="+", default=["lte", "3g"])
    parser.add_argument("--workloads", nargs="+", default=["W0", "W1"])
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--micro-batches", nargs="+", type=int, default=MICRO_BATCHES)
    options = parser.parse_args()
    began = show_about()
    settings = [
        Setting(activations=codec, gradients=codec, micro_batches=count)
        for count in options.micro_batches
        for codec in options.codecs
    ]
    figures, tables = [], []
    with services() as running:
        for (workload, profile), steps in CASES.items():
            if profile in options.profiles and workload in options.workloads:
                found = measure(running, workload, profile, settings, steps=steps)
                tables.append(table_of(found))
                tables[-1].show()
                figures += found
    save("links", [{**asdict(one), "ratio": one.ratio} for one in figures], tables, began)


if __name__ == "__main__":
    main()
