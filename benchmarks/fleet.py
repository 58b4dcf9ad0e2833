"""One model from many devices: accuracy, bytes and time of each mode, beside training alone and centrally.

    python -m benchmarks.fleet [--devices 10] [--epochs 24] [--partitions classes:2 dirichlet:0.3 iid]
                               [--scale 10 100 1000] [--drawn 10] [--windows 0 1 10]

The digits, split over the devices; agents, workers, broker and store are those of a real run, within this
process. Accuracy is on all ten digits: the median of the devices, which are one model where heads and tails
are averaged, and the least of them at the end. Bytes are what a device sends and receives in a round of four
steps; those of ends are what a step that ends a round carries beyond the others, both ways. "Central" is one
training on all data, of as many epochs. `--scale` measures how fast rounds of `--drawn` devices follow on
each other, and windows of `--windows` of them, in fleets of so many devices. The tables go to docs/fleet.md
by `python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.report import Table, save, show_about
from device_agent.observations import Evaluated, Observation, RoundEnded, StepTaken
from spliteasy.job import Job, load_job_file
from spliteasy.job.file import parse_job
from spliteasy.observability import logs
from spliteasy.runtime.user_code import project_root
from spliteasy_cli.commands.train import STORE_FILE, agent_configs, prepare_folder, train_embedded
from spliteasy_cli.support.alone import Points, accuracies_alone

JOB = Path("examples/digits/job.toml")
MODES: dict[str, dict[str, Any]] = {
    "sealed": {},
    "plain": {"aggregate": "plain"},
    "own ends": {"ends": "own"},
    "shared": {"mode": "shared"},
    "shared, windows of one": {"mode": "shared", "window": 1},
    "relay": {"mode": "relay"},
}
DRAWN = 10
POINTS = 4
"""Evaluations of each device, evenly over its training."""
ROUND_STEPS, BATCH, WORKERS = 4, 30, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One training of all devices. Bytes are of one device and round, both ways."""

    partition: str
    mode: str
    least: float
    median: float
    curve: tuple[tuple[int, float, float], ...]
    """(round, MB that a device has sent and received, median accuracy)."""
    round_bytes: float
    ends_bytes: float
    """The part of `round_bytes` that heads and tails take."""
    waited_s: float
    """Seconds between the last step of a round and the first of the next, beyond those between two others."""
    round_s: float
    rounds: int


def job_of(mode: dict[str, Any], epochs: int, *, every_epochs: int = 0) -> Job:
    """Return the digits job with rounds."""
    spec = load_job_file(JOB).model_dump(mode="json", exclude={"plan"})
    fleet = {"mode": "splitfed", "round_steps": ROUND_STEPS, **mode}
    changed = {
        **spec,
        "name": "digits-fleet",
        "epochs": epochs,
        "batch_size": BATCH,
        "evaluation": {"every_epochs": every_epochs, "batch_size": 512},
        "fleet": fleet,
        "share_ends": mode.get("aggregate") == "plain",
    }
    return Job.create(parse_job(changed), project_root(JOB))


@dataclass(slots=True)
class Traffic:
    """The bytes that one device sends and receives, and when; evaluations are left out."""

    steps: int = 0
    last_s: float = 0.0
    total: int = 0
    evaluated: bool = False
    """There was an evaluation since the last step."""
    within: list[tuple[int, float]] = field(default_factory=list)
    """(bytes, seconds) from one step to the next of the same round."""
    between: list[tuple[int, float]] = field(default_factory=list)
    """The same from the last step of a round to the first of the next."""

    def step(self, taken: StepTaken, now_s: float) -> None:
        total = taken.bytes_up + taken.bytes_down
        if self.steps and not self.evaluated:
            to = self.between if taken.step % ROUND_STEPS == 1 else self.within
            to.append((total - self.total, now_s - self.last_s))
        self.steps, self.total, self.last_s, self.evaluated = taken.step, total, now_s, False

    def of_round(self, column: int) -> tuple[float, float]:
        """Return the median of a whole round, and how much of it is its end's."""
        step, end = (statistics.median(x[column] for x in each) for each in (self.within, self.between))
        return (ROUND_STEPS - 1) * step + end, max(0.0, end - step)


async def trained(partition: str, name: str, devices: int, epochs: int) -> list[Figure]:
    """Return what the fleet reaches and, with the first of the modes, each device alone."""
    job, root = job_of(MODES[name], epochs, every_epochs=max(1, epochs // POINTS)), project_root(JOB)
    points: dict[int, list[float]] = {}
    last: dict[str, float] = {}
    traffic: dict[str, Traffic] = {}

    def observe(observation: Observation) -> None:
        found = traffic.setdefault(observation.device, Traffic())
        if isinstance(observation, Evaluated) and observation.accuracy is not None:
            found.evaluated = True
            last[observation.device] = observation.accuracy
            points.setdefault(observation.step // ROUND_STEPS, []).append(observation.accuracy)
        elif isinstance(observation, StepTaken):
            found.step(observation, time.monotonic())

    with TemporaryDirectory(prefix="spliteasy-fleet-") as path:
        folder = Path(path)
        configs = agent_configs(job, JOB, folder, devices, None, partition=partition)
        prepare_folder(folder, resume=False)
        began = time.monotonic()
        await train_embedded(job, configs, WORKERS, folder / STORE_FILE, observe, asyncio.Event())
        seconds = time.monotonic() - began
        alone = (
            await accuracies_alone(job, root, configs, asyncio.Event()) if name == next(iter(MODES)) else {}
        )
        whole = agent_configs(job, JOB, folder / "central", 1, None, partition="iid")
        central = await accuracies_alone(job, root, whole, asyncio.Event()) if alone else {}
    rounds = max(each.steps for each in traffic.values()) // ROUND_STEPS
    nbytes, ends = zip(*(each.of_round(0) for each in traffic.values()), strict=True)
    round_bytes = statistics.mean(nbytes)
    found = [
        Figure(
            partition=partition,
            mode=name,
            least=min(last.values()),
            median=statistics.median(last.values()),
            curve=tuple(
                (number, number * round_bytes / 1e6, statistics.median(each))
                for number, each in sorted(points.items())
                if len(each) > devices // 2
            ),
            round_bytes=round_bytes,
            ends_bytes=statistics.mean(ends),
            waited_s=statistics.median(each.of_round(1)[1] for each in traffic.values()),
            round_s=seconds / rounds,
            rounds=rounds,
        )
    ]
    return found + [
        _by_itself(partition, mode, each) for mode, each in (("alone", alone), ("central", central)) if each
    ]


def _by_itself(partition: str, mode: str, accuracies: dict[str, Points]) -> Figure:
    """Return the figure of trainings that send nothing."""
    ended = [points[-1][1] for points in accuracies.values()]
    columns = zip(*accuracies.values(), strict=False)
    curve = [(each[0][0] // ROUND_STEPS, 0.0, statistics.median(a for _, a in each)) for each in columns]
    return Figure(
        partition=partition,
        mode=mode,
        least=min(ended),
        median=statistics.median(ended),
        curve=tuple(curve),
        round_bytes=0.0,
        ends_bytes=0.0,
        waited_s=0.0,
        round_s=0.0,
        rounds=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rounds, or windows, of devices that are drawn from a fleet."""

    devices: int
    mode: str
    drawn: int
    window: int
    """Devices in a window, or in a round of `splitfed`."""
    start_s: float
    """Seconds until all devices had their job, data and first weights."""
    rounds: int
    rounds_a_minute: float
    processor_ms: float
    """Milliseconds of processor time a round, or window, of all that the process does."""
    waited_s: float
    """Seconds from one step of a device to its next one, where it was in the round; the median."""
    peak_mb: float


async def paced(mode: str, devices: int, seconds: float, drawn: int, window: int) -> Pace:
    """Return how fast rounds follow on each other in one process, for so many seconds."""
    settings: dict[str, Any] = {"mode": mode, "ends": "own", "devices_per_round": min(drawn, devices)}
    if mode == "shared":
        settings["window"] = window
    job = job_of({**settings, "quorum": 0.5, "round_steps": 1 if mode == "splitfed" else 20}, 10_000)
    stop, begun, last, waits = asyncio.Event(), asyncio.Event(), dict[str, float](), list[float]()
    taken: dict[str, int] = {}
    ready = set[str]()

    def observe(observation: Observation) -> None:
        ready.add(observation.device)
        now = time.monotonic()
        if isinstance(observation, StepTaken):
            if observation.device in last:
                waits.append(now - last[observation.device])
            last[observation.device] = now
        elif isinstance(observation, RoundEnded):
            taken[observation.device] = observation.round
        if taken and len(ready) == devices:
            begun.set()

    with TemporaryDirectory(prefix="spliteasy-fleet-") as path:
        folder = Path(path)
        configs = agent_configs(job, JOB, folder, devices, None)
        prepare_folder(folder, resume=False)
        asked = time.monotonic()
        training = asyncio.create_task(
            train_embedded(job, configs, WORKERS, folder / STORE_FILE, observe, stop)
        )
        await begun.wait()
        began, before, used = time.monotonic(), max(taken.values()), time.process_time()
        waits.clear()
        await asyncio.wait({training}, timeout=seconds)
        rounds, lasted = max(taken.values()) - before, time.monotonic() - began
        used = time.process_time() - used
        stop.set()
        await training
    return Pace(
        devices=devices,
        mode=mode,
        drawn=min(drawn, devices),
        window=window if mode == "shared" else min(drawn, devices),
        start_s=began - asked,
        rounds=rounds,
        rounds_a_minute=60 * rounds / lasted,
        processor_ms=1000 * used / max(1, rounds),
        waited_s=statistics.median(waits) if waits else 0.0,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def table_of_paces(paces: Sequence[Pace]) -> Table:
    rows = [
        [
            str(each.devices),
            f"rounds of {each.drawn}"
            if each.mode == "splitfed"
            else f"windows of {each.window}, rounds of {each.drawn}",
            f"{each.rounds_a_minute:.0f}",
            f"{each.processor_ms:.0f}",
            f"{each.waited_s:.2f}",
            f"{each.start_s:.0f}",
            f"{each.peak_mb:.0f}",
        ]
        for each in paces
    ]
    head = ["devices", "what", "a minute", "processor ms", "s from step to step", "s to start", "peak MB"]
    return Table("Fleets of many devices in one process", head, rows)


def table_of(figures: Sequence[Figure], devices: int) -> Table:
    rows = [
        [
            each.partition,
            each.mode,
            f"{each.least:.3f}",
            f"{each.median:.3f}",
            f"{each.round_bytes / 1e6:.2f}" if each.rounds else "–",
            f"{each.ends_bytes / 1e6:.2f}" if each.rounds else "–",
            f"{each.waited_s:.2f}" if each.rounds else "–",
            f"{60 / each.round_s:.0f}" if each.rounds else "–",
        ]
        for each in figures
    ]
    title = f"Digits on {devices} devices, rounds of {ROUND_STEPS} steps"
    head = ["split", "mode", "least accuracy", "median", "MB a round and device", "of these ends"]
    return Table(title, [*head, "s waited a round", "rounds a minute"], rows)


def table_of_curves(figures: Sequence[Figure]) -> Table:
    """Return accuracy over rounds and over bytes."""
    numbers = sorted({number for each in figures if each.rounds for number, _, _ in each.curve})
    rows = []
    for each in figures:
        at = {number: (mb, accuracy) for number, mb, accuracy in each.curve}
        cells = [_cell(at.get(number), sends=each.rounds > 0) for number in numbers]
        if any(number in at for number in numbers):
            rows.append([each.partition, each.mode, *cells])
    head = ["split", "mode", *(f"{number} rounds" for number in numbers)]
    return Table("Median accuracy, and the MB that a device has carried by then", head, rows)


def _cell(point: tuple[float, float] | None, *, sends: bool) -> str:
    if point is None:
        return "–"
    mb, accuracy = point
    return f"{accuracy:.3f} ({mb:.1f})" if sends else f"{accuracy:.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--partitions", nargs="*", default=["classes:2", "dirichlet:0.3", "iid"])
    parser.add_argument("--scale", nargs="*", type=int, default=[], metavar="DEVICES")
    parser.add_argument("--drawn", type=int, default=DRAWN, help="devices in a round of --scale")
    parser.add_argument(
        "--windows", nargs="*", type=int, default=[0, 1, DRAWN], help="devices in a window; 0: rounds"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement of --scale")
    asked = parser.parse_args(argv)
    logs.configure("error")
    began, figures = show_about(), list[Figure]()
    for partition in asked.partitions:
        for name in MODES:
            figures += asyncio.run(trained(partition, name, asked.devices, asked.epochs))
            table_of(figures[-3:] if name == next(iter(MODES)) else figures[-1:], asked.devices).show()
    paces = []
    for devices in asked.scale:
        for window in asked.windows:
            mode = "shared" if window else "splitfed"
            paces.append(asyncio.run(paced(mode, devices, asked.seconds, asked.drawn, window)))
            table_of_paces(paces[-1:]).show()
    if figures:
        tables = [table_of(figures, asked.devices), table_of_curves(figures)]
        save("fleet", [asdict(each) for each in figures], tables, began)
    if paces:
        save("fleet_scale", [asdict(each) for each in paces], [table_of_paces(paces)], began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
