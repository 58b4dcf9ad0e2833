"""The cost of cuts: the same steps over lte and over flaky-lte, which is cut for 3 s every 10 s.

    python -m benchmarks.flaky [--steps 150]

Both end with equal weights, so the times to any loss are in the ratio of the times, and the last losses are
equal. Bytes are counted where they enter the link, so that "sent twice" holds all that the cuts cost: frames
sent again, frames that were lost half way, and connecting again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass

from benchmarks.emulator.profiles import PROFILES
from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Contestant, Emulated, Field, Services, services
from benchmarks.harness.submission import enter_ours
from benchmarks.harness.workloads import WORKLOADS, Setting
from broker.protocol.frames import CHUNK_BYTES
from broker.transport.sender import WINDOW

STEPS = 150
LAPS = 2
GOAL = 1.5
CODEC = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Seconds for all steps over each link, and what was done again over the flaky one."""

    steps: int
    lte_s: float
    flaky_s: float
    cuts: int
    resent_bytes: int
    """The bytes sent up beside what the steady link carried; both directions of the protocol's own messages
    are in it."""
    lost_steps: int
    """The steps that were taken more than once, or not at all."""
    same_loss: bool

    @property
    def ratio(self) -> float:
        return self.flaky_s / self.lte_s

    @property
    def resent_a_cut(self) -> float:
        return self.resent_bytes / max(1, self.cuts)


def measure(
    running: Services,
    *,
    steps: int = STEPS,
    laps: int = LAPS,
    profiles: tuple[str, str] = ("lte", "flaky-lte"),
) -> Figure:
    """Take turns on a steady and a flaky link: `laps` of `steps` ÷ `laps` steps each."""
    with Field(running) as field:
        worker = field.worker()
        sides: list[tuple[Contestant, Emulated]] = []
        setting = Setting(activations=CODEC, gradients=CODEC)
        for profile in profiles:
            link = field.emulator(profile)
            name = f"flaky {profile}"
            sides.append((enter_ours(field, WORKLOADS["W0"], name, setting, worker, broker=link.url), link))
        seconds, sent, cuts = [0.0, 0.0], [0, 0], [0, 0]
        for _ in range(laps):
            for index, (contestant, link) in enumerate(sides):
                before = link.stats()
                seconds[index] += sum(contestant.lap(steps // laps))
                after = link.stats()
                sent[index] += after["up"]["taken"] - before["up"]["taken"]
                cuts[index] += after["cuts"] - before["cuts"]
                print(".", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        (steady, _), (flaky, _) = sides
        taken = flaky.told[-1]["step"] - flaky.ready["step"]
        return Figure(
            steps=steps // laps * laps,
            lte_s=seconds[0],
            flaky_s=seconds[1],
            cuts=cuts[1],
            resent_bytes=sent[1] - sent[0],
            lost_steps=abs(steps // laps * laps - taken),
            same_loss=steady.told[-1]["loss"] == flaky.told[-1]["loss"],
        )


def table_of(one: Figure) -> Table:
    outage = PROFILES["flaky-lte"].outage
    assert outage is not None
    window = WINDOW * CHUNK_BYTES
    rows = [
        ["seconds on lte", f"{one.lte_s:.1f}", ""],
        ["seconds on flaky-lte", f"{one.flaky_s:.1f}", ""],
        ["time to the same loss, × lte", f"{one.ratio:.2f}", goal(f"≤ {GOAL}", one.ratio <= GOAL)],
        ["the outage alone, ×", f"{1 + outage.for_s / outage.every_s:.2f}", ""],
        ["cuts", str(one.cuts), ""],
        [
            "kB sent twice a cut",
            f"{one.resent_a_cut / 1000:.0f}",
            goal(f"≤ a window of {window // 1000} kB", one.resent_a_cut <= window),
        ],
        ["steps lost", str(one.lost_steps), goal("0", one.lost_steps == 0)],
        ["losses equal at the end", "yes" if one.same_loss else "no", goal("yes", one.same_loss)],
    ]
    return Table(f"W0, {CODEC}, {one.steps} steps over flaky-lte", ["what", "figure", "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flaky", description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    began = show_about()
    with services() as running:
        found = measure(running, steps=options.steps)
    table = table_of(found)
    table.show()
    save("flaky", {**asdict(found), "ratio": found.ratio}, [table], began)


if __name__ == "__main__":
    main()
