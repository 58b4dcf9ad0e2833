"""Many devices on one worker, each 100 ms from the broker and back: does the worker wait, is any left behind?

    python -m benchmarks.many [--devices 1 8 64] [--seconds 10]

The devices are agents in one process of their own, over one emulated link without a limit of its rate; almost
all of the computation is the body's. A step of one device is two round trips at least, so that one device
leaves the worker idle for most of the time, and enough of them should not. Counted are whole steps of each
device within the same seconds, and the seconds that the worker's torch thread computes in them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, services
from benchmarks.harness.submission import submit
from benchmarks.harness.timed_runs import cpu_seconds
from benchmarks.harness.workloads import CROWD, Workload

DEVICES = (1, 4, 16, 32, 64)
SECONDS = 10.0
LINK = "far"
SHARE_GOAL, SHARE_FROM = 0.95, 32
"""The goal as a share of the time that the worker computes, from so many devices on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The figures of so many devices in the same `seconds`."""

    devices: int
    seconds: float
    steps: list[int]
    """The steps of each device."""
    computing_s: float
    """The time that the worker's torch thread computes, by the clock on the wall."""
    processor_s: float
    """The processor time of that thread, which is less where others use the cores."""
    cpu_s: dict[str, float]
    """The processor time of each process: devices, link, broker, store, worker."""

    @property
    def share(self) -> float:
        return self.computing_s / self.seconds

    @property
    def fairness(self) -> float:
        """Jain's index of the devices' steps: 1 where all took as many, 1 / devices where one took all."""
        total, squares = sum(self.steps), sum(count**2 for count in self.steps)
        return total**2 / (len(self.steps) * squares) if squares else math.nan


def measure(
    running: Services, devices: int, seconds: float, *, workload: Workload = CROWD, link: str = LINK
) -> Figure:
    """Start the devices and a worker, and count once all have taken a step or two."""
    with Field(running) as field:
        job = f"{workload.name.lower()}-{devices}"
        submit(workload.job(job), running.store)
        arguments = ["-m", "benchmarks.harness.load", "worker", running.broker, running.store]
        worker = field.enter("worker", arguments, {})
        emulated = field.emulator(link)
        state = str(running.folder / job)
        names = ",".join(f"phone-{number}" for number in range(1, devices + 1))
        arguments = ["devices", job, emulated.url, state, names, workload.data.__name__]
        crowd = field.enter("crowd", ["-m", "benchmarks.harness.load", *arguments], {})
        pids = {
            "devices": crowd.device.pid,
            "link": emulated.process.pid,
            "worker": worker.device.pid,
            **running.pids(),
        }
        spent = {who: -cpu_seconds(pid) for who, pid in pids.items()}
        before = worker.ask("0")
        steps = crowd.ask(str(seconds))["steps"]
        after = worker.ask("0")
        cpu_s = {who: spent[who] + cpu_seconds(pid) for who, pid in pids.items()}
    return Figure(
        devices=devices,
        seconds=after["at"] - before["at"],
        steps=steps,
        computing_s=after["computing_s"] - before["computing_s"],
        processor_s=after["processor_s"] - before["processor_s"],
        cpu_s=cpu_s,
    )


def table_of(figures: Sequence[Figure]) -> Table:
    rows = []
    for one in figures:
        wanted = one.devices >= SHARE_FROM
        rows.append(
            [
                str(one.devices),
                f"{sum(one.steps) / one.seconds:.1f}",
                f"{one.seconds / max(1.0, statistics.median(one.steps)) * 1000:.0f}",
                f"{one.share:.2f}",
                f"{min(one.steps)} to {max(one.steps)}",
                f"{one.fairness:.3f}",
                goal(f"computes ≥ {SHARE_GOAL}", one.share >= SHARE_GOAL) if wanted else "",
            ]
        )
    head = ["devices", "steps a second", "ms a step", "worker computes", "steps each", "fairness", "goal"]
    return Table("Many devices on one worker, 100 ms round trip", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    parser.add_argument("--devices", nargs="+", type=int, default=DEVICES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    began = show_about()
    figures = []
    with services() as running:
        for count in options.devices:
            figures.append(measure(running, count, options.seconds))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    table = table_of(figures)
    table.show()
    told = [{**asdict(one), "share": one.share, "fairness": one.fairness} for one in figures]
    save("many", told, [table], began)


if __name__ == "__main__":
    main()
