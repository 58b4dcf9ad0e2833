"""Step time over emulated links, against what the link and the computation allow at best.

    python -m benchmarks.links [--profiles lte 3g] [--codecs fp32 int8]

A step is four messages and three computations, each waiting for the one before (one micro-batch), so the
bound is compute + bytes up ÷ rate + bytes down ÷ rate + two round trips. Compute is the step time of the
same model in one plain process at the same time, and the time that encoding and decoding need is not in it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.emulator.profiles import PROFILES, Profile
from benchmarks.report import about, save, table
from benchmarks.services import Field, services
from benchmarks.submitting import enter_ours
from benchmarks.workloads import WORKLOADS

CODECS = ("fp32", "fp16", "int8", "topk:0.05")
CASES = {("W0", "lte"): 20, ("W0", "3g"): 4, ("W1", "lte"): 2}
"""Steps of a lap by workload and link: a lap takes some seconds."""
LAPS = 3
FLAKY_STEPS = 150
GOAL, FLAKY_GOAL = 1.15, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One codec over one link: seconds and bytes a step."""

    workload: str
    profile: str
    codec: str
    step_s: float
    compute_s: float
    bound_s: float
    bytes_up: float
    bytes_down: float

    @property
    def ratio(self) -> float:
        return self.step_s / self.bound_s


def bound_s(profile: Profile, compute_s: float, up: float, down: float) -> float:
    """The least that a step of one micro-batch takes."""
    rates = ((up, profile.up_bytes_s), (down, profile.down_bytes_s))
    return compute_s + sum(size / rate for size, rate in rates if rate) + 4 * profile.latency_s


def measure(workload: str, profile: str, codecs: Sequence[str], steps: int) -> list[Figure]:
    """All codecs take turns; each has the link for itself then."""
    one = WORKLOADS[workload]
    with services() as running, Field(running) as field:
        worker = field.worker()
        broker = field.emulator(profile)
        plain = field.enter("plain", ["-m", "benchmarks.peers", "plain", "device", workload], {})
        for codec in codecs:
            enter_ours(field, one, codec, (codec, codec), worker, broker=broker)
        for _ in range(LAPS):
            for contestant in field.contestants:
                contestant.lap(steps)
        compute_s = statistics.median(second for lap in plain.seconds for second in lap)
        figures = []
        for contestant in field.contestants[1:]:
            up, down = (statistics.median(column) for column in zip(*contestant.bytes, strict=True))
            figures.append(
                Figure(
                    workload=workload,
                    profile=profile,
                    codec=contestant.name,
                    step_s=statistics.median(second for lap in contestant.seconds for second in lap),
                    compute_s=compute_s,
                    bound_s=bound_s(PROFILES[profile], compute_s, up, down),
                    bytes_up=up,
                    bytes_down=down,
                )
            )
        return figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaky:
    """The same steps over lte and over flaky-lte: equal weights at the end, so equal loss."""

    steps: int
    lte_s: float
    flaky_s: float
    resent_bytes: float
    cuts: float

    @property
    def ratio(self) -> float:
        return self.flaky_s / self.lte_s


def measure_flaky(steps: int = FLAKY_STEPS) -> Flaky:
    """W0 in full precision, over both links, one after the other."""
    found: dict[str, tuple[float, float]] = {}
    outage = PROFILES["flaky-lte"].outage
    assert outage is not None
    with services() as running, Field(running) as field:
        worker = field.worker()
        for profile in ("lte", "flaky-lte"):
            broker = field.emulator(profile)
            contestant = enter_ours(field, WORKLOADS["W0"], profile, ("fp32", "fp32"), worker, broker=broker)
            seconds = sum(contestant.lap(steps))
            found[profile] = seconds, contestant.bytes[-1][0] * steps
    return Flaky(
        steps=steps,
        lte_s=found["lte"][0],
        flaky_s=found["flaky-lte"][0],
        resent_bytes=found["flaky-lte"][1] - found["lte"][1],
        cuts=found["flaky-lte"][0] / (outage.every_s + outage.for_s),
    )


def show(figures: Sequence[Figure]) -> None:
    rows = [
        [
            one.codec,
            f"{one.bytes_up / 1000:.1f}",
            f"{one.bytes_down / 1000:.1f}",
            f"{one.step_s * 1000:.0f}",
            f"{one.bound_s * 1000:.0f}",
            f"{one.ratio:.2f}",
            f"≤ {GOAL}: {'met' if one.ratio <= GOAL else 'NOT met'}",
        ]
        for one in figures
    ]
    first = figures[0]
    table(
        f"{first.workload} over {first.profile}, compute {first.compute_s * 1000:.0f} ms",
        ["codec", "kB up", "kB down", "ms a step", "bound ms", "step ÷ bound", "goal"],
        rows,
    )


def show_flaky(one: Flaky) -> None:
    met = "met" if one.ratio <= FLAKY_GOAL else "NOT met"
    row = [str(one.steps), f"{one.lte_s:.1f}", f"{one.flaky_s:.1f}", f"{one.ratio:.2f}"]
    row += [f"{one.resent_bytes / 1000:.0f} in {one.cuts:.1f} cuts", f"≤ {FLAKY_GOAL}: {met}"]
    head = ["steps", "s on lte", "s on flaky-lte", "ratio", "kB sent twice", "goal"]
    table("W0 over flaky-lte (cut for 3 s every 10 s), no step lost", head, [row])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.links", description=__doc__)
    parser.add_argument("--profiles", nargs="+", default=["lte", "3g"])
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    options = parser.parse_args()
    print(about())
    figures = []
    for (workload, profile), steps in CASES.items():
        if profile in options.profiles:
            found = measure(workload, profile, options.codecs, steps)
            show(found)
            figures += found
    flaky = measure_flaky()
    show_flaky(flaky)
    told = [{**asdict(one), "ratio": one.ratio} for one in figures]
    save("links", {"steps": told, "flaky": {**asdict(flaky), "ratio": flaky.ratio}})


if __name__ == "__main__":
    main()
