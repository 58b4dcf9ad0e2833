"""One model from many devices: accuracy, bytes and time of each mode, beside training alone and centrally.

    python -m benchmarks.fleet [--devices 10] [--epochs 24] [--partitions classes:2 dirichlet:0.3 iid]
                               [--scale 10 100 1000]

The digits, split over the devices; agents, workers, broker and store are those of a real run, within this
process. Accuracy is on all ten digits: the least and the median of the devices, which are one model where
heads and tails are averaged. Bytes are what a device sends and receives in a round of four steps. "Central"
is one training on all data, of as many epochs. `--scale` measures how fast rounds follow on
each other, of ten devices that are drawn from so many. The tables go to docs/fleet.md by
`python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from spliteasy_cli.support.alone import accuracies_alone

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
ROUND_STEPS, BATCH, WORKERS = 4, 30, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One training of all devices. Bytes are of one device and round, both ways."""

    partition: str
    mode: str
    least: float
    median: float
    round_bytes: float
    round_s: float
    rounds: int


def job_of(mode: dict[str, Any], epochs: int) -> Job:
    """Return the digits job with rounds."""
    spec = load_job_file(JOB).model_dump(mode="json", exclude={"plan"})
    fleet = {"mode": "splitfed", "round_steps": ROUND_STEPS, **mode}
    changed = {
        **spec,
        "name": "digits-fleet",
        "epochs": epochs,
        "batch_size": BATCH,
        "evaluation": {"every_epochs": 0, "batch_size": 512},
        "fleet": fleet,
        "share_ends": mode.get("aggregate") == "plain",
    }
    return Job.create(parse_job(changed), project_root(JOB))


async def trained(partition: str, name: str, devices: int, epochs: int) -> list[Figure]:
    """Return what the fleet reaches and, with the first of the modes, each device alone."""
    job, root = job_of(MODES[name], epochs), project_root(JOB)
    last: dict[str, float] = {}
    bytes_of: dict[str, int] = {}
    steps: dict[str, int] = {}

    def observe(observation: Observation) -> None:
        if isinstance(observation, Evaluated) and observation.accuracy is not None:
            last[observation.device] = observation.accuracy
        elif isinstance(observation, StepTaken):
            bytes_of[observation.device] = observation.bytes_up + observation.bytes_down
            steps[observation.device] = observation.step

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
    rounds = max(steps.values()) // ROUND_STEPS
    found = [
        Figure(
            partition=partition,
            mode=name,
            least=min(last.values()),
            median=statistics.median(last.values()),
            round_bytes=statistics.mean(bytes_of[d] / (steps[d] / ROUND_STEPS) for d in bytes_of),
            round_s=seconds / rounds,
            rounds=rounds,
        )
    ]
    for mode, each in (("alone", alone), ("central", central)):
        if ended := [points[-1][1] for points in each.values()]:
            found.append(
                Figure(
                    partition=partition,
                    mode=mode,
                    least=min(ended),
                    median=statistics.median(ended),
                    round_bytes=0.0,
                    round_s=0.0,
                    rounds=0,
                )
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Rounds of ten devices that are drawn from a fleet."""

    devices: int
    mode: str
    rounds: int
    rounds_a_minute: float
    waited_s: float
    """Seconds between a device's last step of a round and the first of its next one; the median."""
    peak_mb: float


async def paced(mode: str, devices: int, seconds: float) -> Pace:
    """Return how fast rounds follow on each other in one process, for so many seconds."""
    settings = {"mode": mode, "ends": "own", "devices_per_round": min(DRAWN, devices), "quorum": 0.5}
    job = job_of({**settings, "round_steps": 1 if mode == "splitfed" else 20}, 10_000)
    stop, begun, last, waits = asyncio.Event(), asyncio.Event(), dict[str, float](), list[float]()
    taken: dict[str, int] = {}

    def observe(observation: Observation) -> None:
        now = time.monotonic()
        if isinstance(observation, StepTaken):
            if observation.device in last:
                waits.append(now - last[observation.device])
            last[observation.device] = now
        elif isinstance(observation, RoundEnded):
            taken[observation.device] = observation.round
            begun.set()

    with TemporaryDirectory(prefix="spliteasy-fleet-") as path:
        folder = Path(path)
        configs = agent_configs(job, JOB, folder, devices, None)
        prepare_folder(folder, resume=False)
        training = asyncio.create_task(
            train_embedded(job, configs, WORKERS, folder / STORE_FILE, observe, stop)
        )
        await begun.wait()
        began, before = time.monotonic(), max(taken.values())
        waits.clear()
        await asyncio.wait({training}, timeout=seconds)
        rounds, lasted = max(taken.values()) - before, time.monotonic() - began
        stop.set()
        await training
    return Pace(
        devices=devices,
        mode=mode,
        rounds=rounds,
        rounds_a_minute=60 * rounds / lasted,
        waited_s=statistics.median(waits) if waits else 0.0,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def table_of_paces(paces: Sequence[Pace]) -> Table:
    rows = [
        [
            str(each.devices),
            each.mode,
            f"{each.rounds_a_minute:.0f}",
            f"{each.waited_s:.2f}",
            f"{each.peak_mb:.0f}",
        ]
        for each in paces
    ]
    title = f"Rounds (of one step) and windows of {DRAWN} devices, drawn from a fleet in one process"
    return Table(title, ["devices", "mode", "a minute", "median seconds from step to step", "peak MB"], rows)


def table_of(figures: Sequence[Figure], devices: int) -> Table:
    rows = [
        [
            each.partition,
            each.mode,
            f"{each.least:.3f}",
            f"{each.median:.3f}",
            f"{each.round_bytes / 1e6:.2f}" if each.rounds else "–",
            f"{each.round_s:.2f}" if each.rounds else "–",
        ]
        for each in figures
    ]
    title = f"Digits on {devices} devices, rounds of {ROUND_STEPS} steps"
    head = ["split", "mode", "least accuracy", "median", "MB a round and device", "seconds a round"]
    return Table(title, head, rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--devices", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--partitions", nargs="*", default=["classes:2", "dirichlet:0.3", "iid"])
    parser.add_argument("--scale", nargs="*", type=int, default=[], metavar="DEVICES")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement of --scale")
    asked = parser.parse_args(argv)
    logs.configure("error")
    began, figures = show_about(), list[Figure]()
    for partition in asked.partitions:
        for name in MODES:
            figures += asyncio.run(trained(partition, name, asked.devices, asked.epochs))
            table_of(figures[-3:] if name == next(iter(MODES)) else figures[-1:], asked.devices).show()
    paces = [
        asyncio.run(paced(mode, devices, asked.seconds))
        for devices in asked.scale
        for mode in ("splitfed", "shared")
    ]
    tables = [table_of(figures, asked.devices)] if figures else []
    tables += [table_of_paces(paces)] if paces else []
    for table in tables[-1:] if paces else []:
        table.show()
    save("fleet", [asdict(each) for each in (*figures, *paces)], tables, began)
    return 0


if __name__ == "__main__":
    sys.exit(main())
