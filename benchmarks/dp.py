"""The cost of DP-SGD in accuracy: the digits at ε 8, 3 and 1, trained through agent and worker.

    python -m benchmarks.dp [--epsilons 8 3 1] [--seeds 1]

All 1440 training images on one device, a network with group norm, δ = 1e-5, 256 samples a step on average,
broker and store in this process. The table goes to docs/privacy.md by the program
`python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.accuracy import train_devices
from benchmarks.harness import private_digits
from benchmarks.harness.accuracy_tasks import DATA, ROOT
from benchmarks.harness.report import Table, goal, save, show_about
from spliteasy.job import Job
from spliteasy.job.file import parse_job
from spliteasy.observability import logs

TASK = "private-digits"
EPOCHS = {8.0: 20, 3.0: 15, 1.0: 10}
"""By ε: fewer steps where each needs more noise."""

RATE = 0.5
GOALS = {8.0: 92.0, 3.0: 82.0, 1.0: 44.0}
"""Percent of the test images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One ε, the mean over the seeds."""

    epsilon: float
    steps: int
    noise_multiplier: float
    accuracy: float
    seconds: float


def measure(epsilon: float, seeds: int, epochs: int | None = None) -> Figure:
    """Train to the end under each seed."""
    DATA[TASK] = f"{private_digits.__name__}:device_data"
    accuracies, seconds = [], []
    for seed in range(1, seeds + 1):
        content = private_digits.job_of(epsilon=epsilon, epochs=epochs or EPOCHS[epsilon], lr=RATE, seed=seed)
        job, began = Job.create(parse_job(content), ROOT), time.perf_counter()
        with TemporaryDirectory(prefix="spliteasy-dp-") as folder:
            ((accuracy, *_),) = asyncio.run(train_devices(job, TASK, ["phone-1"], Path(folder)))
        accuracies.append(accuracy)
        seconds.append(time.perf_counter() - began)
    batches = private_digits.poisson_of(job.spec)
    return Figure(
        epsilon=epsilon,
        steps=batches.planned,
        noise_multiplier=batches.noise_multiplier,
        accuracy=statistics.mean(accuracies),
        seconds=statistics.mean(seconds),
    )


def table_of(figures: list[Figure], seeds: int) -> Table:
    rows = [
        [
            f"{one.epsilon:g}",
            str(one.steps),
            f"{one.noise_multiplier:.3f}",
            f"{one.accuracy:.1f}",
            f"{one.seconds:.0f}",
            goal(f"≥ {GOALS[one.epsilon]:g}", one.accuracy >= GOALS[one.epsilon]),
        ]
        for one in figures
    ]
    head = ["ε", "steps", "noise", "accuracy %", "s", "goal"]
    return Table(f"DP-SGD on 1440 digits, δ = 1e-5 ({seeds} seeds)", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dp", description=__doc__)
    parser.add_argument("--epsilons", nargs="+", type=float, choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("error")
    began = show_about()
    figures: list[Figure] = []
    for epsilon in options.epsilons:
        figures.append(measure(epsilon, options.seeds))
        table = table_of(figures, options.seeds)
        table.show()
        save("dp", [asdict(one) for one in figures], [table], began)  # a run that is stopped keeps these


if __name__ == "__main__":
    main()
