"""The cost of a codec in accuracy: the same trainings under each of them, over several seeds.

    python -m benchmarks.accuracy [--codecs int8 topk:0.1] [--tasks digits] [--seeds 5]

The agent, the worker and the whole pipeline as they are, with broker and store within this process. A seed
sets the model's first weights, the order of the data and its augmentation, alike for all codecs; it
is a training of four phones, each with a body and data of its own, and its accuracy is their mean. "Points"
are percent of the test images right less lossless's of the same seed. Bytes are all that
went over the wire both ways, frames and headers included. The tables go to docs/codecs.md by
`python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness.accuracy_tasks import DATA, ROOT, job_of
from benchmarks.harness.report import Table, goal, save, show_about
from broker.transport.in_process import MemoryBroker
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Evaluated, Observation, StepTaken
from server_worker.config import Trust
from server_worker.store import SqliteStore
from spliteasy.job import Job
from spliteasy.job.file import parse_job
from spliteasy.observability import logs
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.commands.submit import store_job
from spliteasy_cli.support.embedded import async_connect, workers_running

BASE = "lossless"
CODECS = (BASE, "fp16", "bf16", "int8", "topk:0.1", "topk:0.05")
DEVICES = tuple(f"phone-{number}" for number in range(1, 5))
POINTS_GOAL, BYTES_GOAL = 0.5, 0.27
"""The goals of int8: points lost on average, and bytes over fp32's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One seed under one codec. `accuracy` in percent, the devices' mean; bytes of one device's step."""

    accuracy: float
    loss: float
    bytes_up: float
    bytes_down: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One codec on one task, over the seeds."""

    task: str
    codec: str
    accuracies: list[float]
    points: float
    """Mean over the seeds of the accuracy less lossless's."""
    points_spread: float
    """Standard deviation of the same."""
    bytes_up: float
    bytes_down: float
    of_fp32: float
    """Bytes both ways over fp32's."""

    @property
    def goal(self) -> str:
        if self.codec != "int8":
            return ""
        met = self.points >= -POINTS_GOAL and self.of_fp32 <= BYTES_GOAL
        return goal(f"≥ −{POINTS_GOAL} points at ≤ {BYTES_GOAL}", met)


def train(task: str, seed: int, codec: str, devices: Sequence[str], epochs: int | None = None) -> Training:
    """Train the devices beside each other, on one worker, to the end."""
    job = Job.create(parse_job(job_of(task, seed, codec, epochs)), ROOT)
    with TemporaryDirectory(prefix="spliteasy-accuracy-") as folder:
        ends = asyncio.run(train_devices(job, task, devices, Path(folder)))
    columns = zip(*ends, strict=True)
    accuracy, loss, up, down = (statistics.mean(column) for column in columns)
    return Training(accuracy=accuracy, loss=loss, bytes_up=up, bytes_down=down)


async def train_devices(
    job: Job, task: str, devices: Sequence[str], folder: Path
) -> list[tuple[float, float, float, float]]:
    """The results of each device: accuracy in percent, test loss, bytes up and down a step."""
    store = SqliteStore(None)
    connect = async_connect(MemoryBroker())
    try:
        await store_job(store, job)
        async with workers_running(1, store, connect, trust=Trust.ENROLLED), asyncio.TaskGroup() as group:
            tasks = []
            for device in devices:
                config = AgentConfig(
                    job=job.name,
                    device=device,
                    data=DATA[task],
                    state=folder / device,
                    root=ROOT,
                    secret=bytes([job.spec.seed % 256]) * 32,
                )
                tasks.append(group.create_task(_agent(config, partial(connect, device))))
        return [one.result() for one in tasks]
    finally:
        await store.close()


async def _agent(config: AgentConfig, connect: partial[object]) -> tuple[float, float, float, float]:
    """(accuracy in percent, test loss, bytes up and down a step)."""
    seen: dict[type, Observation] = {}
    compute = TorchThread(config.device)
    try:
        agent = Agent(
            config,
            connect=connect,  # type: ignore[arg-type]
            compute=compute,
            observe=lambda told: seen.__setitem__(type(told), told),
        )
        await agent.run(asyncio.Event())
    finally:
        compute.close()
    step, end = seen[StepTaken], seen[Evaluated]
    assert isinstance(step, StepTaken)
    assert isinstance(end, Evaluated)
    assert end.accuracy is not None
    return 100 * end.accuracy, end.loss, step.bytes_up / step.step, step.bytes_down / step.step


def measure(
    task: str,
    codecs: Sequence[str],
    seeds: int,
    *,
    devices: Sequence[str] = DEVICES,
    epochs: int | None = None,
) -> list[Figure]:
    """All codecs on the seeds 1 and on. Raises RuntimeError where lossless is not what fp32 is."""
    full = train(task, 1, "fp32", devices, epochs)
    runs: dict[str, list[Training]] = {}
    for codec in (BASE, *(codec for codec in codecs if codec != BASE)):
        for seed in range(1, seeds + 1):
            runs.setdefault(codec, []).append(train(task, seed, codec, devices, epochs))
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    base = runs[BASE]
    if (base[0].accuracy, base[0].loss) != (full.accuracy, full.loss):
        raise RuntimeError(f"{BASE} ended with {base[0]}, fp32 with {full}")
    figures = []
    for codec, trainings in runs.items():
        lost = [one.accuracy - theirs.accuracy for one, theirs in zip(trainings, base, strict=True)]
        up, down = (
            statistics.mean(way) for way in zip(*((t.bytes_up, t.bytes_down) for t in trainings), strict=True)
        )
        figures.append(
            Figure(
                task=task,
                codec=codec,
                accuracies=[one.accuracy for one in trainings],
                points=statistics.mean(lost),
                points_spread=statistics.stdev(lost) if len(lost) > 1 else 0.0,
                bytes_up=up,
                bytes_down=down,
                of_fp32=(up + down) / (full.bytes_up + full.bytes_down),
            )
        )
    return figures


def table_of(figures: Sequence[Figure]) -> Table:
    """One task's codecs."""
    rows = [
        [
            one.codec,
            f"{one.bytes_up / 1000:.1f}",
            f"{one.bytes_down / 1000:.1f}",
            f"{one.of_fp32:.3f}",
            f"{statistics.mean(one.accuracies):.2f} ± {_spread(one.accuracies):.2f}",
            "" if one.codec == BASE else f"{one.points:+.2f} ± {one.points_spread:.2f}",
            one.goal,
        ]
        for one in figures
    ]
    head = ["codec", "kB up", "kB down", "of fp32", "accuracy %", "points", "goal"]
    seeds = len(figures[0].accuracies)
    return Table(f"{figures[0].task}: {seeds} seeds, mean ± standard deviation", head, rows)


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--codecs", nargs="+", default=CODECS)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("error")
    began = show_about()
    figures, tables = [], []
    for task in options.tasks:
        found = measure(task, options.codecs, options.seeds)
        tables.append(table_of(found))
        tables[-1].show()
        figures += found
    save("accuracy", [asdict(one) for one in figures], tables, began)


if __name__ == "__main__":
    main()
