"""The effect and the cost of each defence of `[privacy]`, on the digits: attacks, accuracy, bytes and time.

    python -m benchmarks.defences [--only strict label_dp] [--seeds 2]
    python -m benchmarks.defences --label-dp [--seeds 5]
    python -m benchmarks.defences --inputs [--seeds 2]

Every row is a pair of cuts under some settings. Attacks are those of `spliteasy leakage` on what one device
of 360 images sends, 36 of them canaries, in 48 steps; "worst" is the best attack's mean share. Accuracy is
that of whole trainings through agent and worker, without canaries; bytes and seconds are theirs. With
`--label-dp`: canaries under randomized response, by attacks on public ends that read every label that is
trained on, beside the theorem's bound. With `--inputs`: the error of reconstructed inputs. The tables go to
docs/privacy.md by `python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.accuracy import train_devices
from benchmarks.harness.accuracy_tasks import DATA, ROOT, job_of
from benchmarks.harness.report import Table, goal, save, show_about
from spliteasy.job import Job, JobSpec
from spliteasy.job.file import parse_job
from spliteasy.observability import logs
from spliteasy.privacy.defences.label_dp import keep_probability
from spliteasy_cli.leakage.gate import measure

LABEL_ATTACKS = (
    "cluster-gradients",
    "cosine",
    "spectral",
    "few-labels",
    "norm",
    "cluster-outputs",
    "tail-tracking",
)
SHIPPED, DEEPER = ("stem", "pool"), ("stem", "blocks.0")
CANARY_GOAL, POINTS_GOAL = 0.20, 3.0
EPSILONS = (5.0, 3.0, 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """Cuts and the settings of `[privacy]`."""

    name: str
    cuts: tuple[str, str]
    privacy: dict[str, Any]


ROWS = (
    Row("none", SHIPPED, {}),
    Row("strict", SHIPPED, {"preset": "strict"}),
    Row("max_norm", SHIPPED, {"gradient_noise": "max_norm"}),
    Row("noise 1", SHIPPED, {"gradient_noise": 1.0}),
    Row("noise 6", SHIPPED, {"gradient_noise": 6.0}),
    Row("label_dp 3", SHIPPED, {"label_dp": 3.0}),
    Row("label_dp 3, peers", SHIPPED, {"label_dp": 3.0, "peer_labels": True}),
    Row("label_dp 1", SHIPPED, {"label_dp": 1.0}),
    Row("label_dp 1, peers", SHIPPED, {"label_dp": 1.0, "peer_labels": True}),
    Row("none", DEEPER, {}),
    Row("strict", DEEPER, {"preset": "strict"}),
    Row("noise 3", DEEPER, {"gradient_noise": 3.0}),
    Row("noise 6", DEEPER, {"gradient_noise": 6.0}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row, over the seeds."""

    name: str
    cuts: tuple[str, str]
    canaries: dict[str, float]
    """Share recovered, by attack: the mean over the seeds."""
    labels: float
    """The share of all labels, by the best attack."""
    accuracy: float
    """Percent of the test images."""
    bytes_up: float
    """The bytes that a step sends up."""
    seconds: float
    """The seconds that a training takes."""


def spec_of(row: Row, seed: int, epochs: int | None = None) -> JobSpec:
    """The digits job with the row's cuts and settings."""
    job = job_of("digits", seed, "fp32", epochs)
    job["model"]["cuts"] = list(row.cuts)
    return parse_job(job | {"privacy": row.privacy})


def attacked(spec: JobSpec, seed: int, attacks: Sequence[str], steps: int) -> dict[str, dict[str, float]]:
    """The share that each attack recovers: of canaries and of all labels."""
    measured = asyncio.run(measure(spec, ROOT, DATA["digits"], attacks=attacks, seed=seed, steps=steps))
    found: dict[str, dict[str, float]] = {"canary_recovery": {}, "label_recovery": {}}
    for each in measured.rows:
        if each.score is not None and each.score.limit in found:
            found[each.score.limit][each.attack] = each.score.value
    return found


def figure_of(row: Row, seeds: int, steps: int, epochs: int | None) -> Figure:
    """Attack and train a row under each seed."""
    leaks, ends, seconds = [], [], []
    for seed in range(seeds):
        spec = spec_of(row, seed, epochs)
        leaks.append(attacked(spec, seed, LABEL_ATTACKS, steps))
        with TemporaryDirectory(prefix="spliteasy-defences-") as folder:
            job, began = Job.create(spec, ROOT), time.perf_counter()
            ends += asyncio.run(train_devices(job, "digits", ["phone-1"], Path(folder)))
            seconds.append(time.perf_counter() - began)
    canaries = [leak["canary_recovery"] for leak in leaks]
    return Figure(
        name=row.name,
        cuts=row.cuts,
        canaries={name: statistics.mean(c[name] for c in canaries) for name in canaries[0]},
        labels=statistics.mean(max(leak["label_recovery"].values()) for leak in leaks),
        accuracy=statistics.mean(end[0] for end in ends),
        bytes_up=statistics.mean(end[2] for end in ends),
        seconds=statistics.mean(seconds),
    )


def table_of(figures: Sequence[Figure], seeds: int) -> Table:
    """All rows; the goal is strict's."""
    plain = {one.cuts: one.accuracy for one in figures if one.name == "none"}
    rows = []
    for one in figures:
        lost = plain.get(one.cuts, math.nan) - one.accuracy
        most = max(one.canaries, key=lambda name: one.canaries[name])
        met = one.canaries[most] <= CANARY_GOAL and lost <= POINTS_GOAL
        aim = goal(f"≤ {CANARY_GOAL} at ≤ {POINTS_GOAL} points", met) if one.name == "strict" else ""
        rows.append(
            [
                f"`{one.cuts[1]}`",
                one.name,
                *(f"{one.canaries[name]:.2f}" for name in LABEL_ATTACKS[:4]),
                f"{one.canaries[most]:.2f} ({most})",
                f"{one.labels:.2f}",
                f"{one.accuracy:.1f}",
                f"{one.bytes_up / 1000:.0f}",
                f"{one.seconds:.0f}",
                aim,
            ]
        )
    head = ["second cut", "defence", "cluster", "cosine", "spectral", "few labels", "worst", "all labels"]
    head += ["accuracy %", "kB up a step", "s", "goal"]
    return Table(f"Canaries recovered, and what it costs ({seeds} seeds)", head, rows)


INPUT_ATTACKS = ("linear-decoder", "convolutional-decoder", "unsplit")
INPUT_ROWS = tuple(
    Row(name, cuts, privacy)
    for cuts in (SHIPPED, ("blocks.0", "pool"))
    for name, privacy in (("none", {}), ("nopeek 0.5", {"nopeek": 0.5}), ("nopeek 5", {"nopeek": 5.0}))
)


def inputs_table(seeds: int, epochs: int | None) -> tuple[list[dict[str, Any]], Table]:
    """Mean squared error of inputs that a worker with public data, or with no data, reconstructs."""
    figures, rows = [], []
    for row in INPUT_ROWS:
        errors, ends = [], []
        for seed in range(seeds):
            spec = spec_of(row, seed, epochs)
            measured = asyncio.run(measure(spec, ROOT, DATA["digits"], attacks=INPUT_ATTACKS, seed=seed))
            errors.append({each.attack: each.score.value for each in measured.rows if each.score})
            with TemporaryDirectory(prefix="spliteasy-defences-") as folder:
                job = Job.create(spec, ROOT)
                ends += asyncio.run(train_devices(job, "digits", ["phone-1"], Path(folder)))
        means = {name: statistics.mean(error[name] for error in errors) for name in errors[0]}
        accuracy = statistics.mean(end[0] for end in ends)
        figures.append({"name": row.name, "cuts": row.cuts, "errors": means, "accuracy": accuracy})
        shown = [f"{means[name]:.4f}" if name in means else "" for name in INPUT_ATTACKS]
        rows.append([f"`{row.cuts[0]}`", row.name, *shown, f"{accuracy:.1f}"])
    head = ["first cut", "defence", *INPUT_ATTACKS, "accuracy %"]
    return figures, Table(f"Mean squared error of reconstructed inputs ({seeds} seeds)", head, rows)


def label_dp_table(seeds: int) -> tuple[list[dict[str, float]], Table]:
    """Canaries recovered under randomized response beside the bound of its theorem."""
    figures, rows = [], []
    for epsilon in EPSILONS:
        shares, samples = [], 0
        for seed in range(seeds):
            row = Row("label_dp", SHIPPED, {"ends": "public", "label_dp": epsilon})
            found = attacked(spec_of(row, seed), seed, ("tail-tracking", "few-labels"), 18)
            shares.append(max(found["canary_recovery"].values()))
            samples += 36
        bound = keep_probability(epsilon, 10)
        sigma = math.sqrt(bound * (1 - bound) / samples)
        mean = statistics.mean(shares)
        figures.append({"epsilon": epsilon, "recovered": mean, "bound": bound, "sigma": sigma})
        met = goal("≤ bound + 3σ", mean <= bound + 3 * sigma)
        rows.append([f"{epsilon:g}", f"{mean:.3f}", f"{bound:.3f}", f"{bound + 3 * sigma:.3f}", met])
    head = ["ε", "canaries recovered", "e^ε/(e^ε + 9)", "bound + 3σ", "goal"]
    return figures, Table(f"Randomized response ({seeds} seeds)", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defences", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted({row.name for row in ROWS}))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48, help="steps that are recorded")
    parser.add_argument("--epochs", type=int, help="of the trainings; default: the job's")
    parser.add_argument("--label-dp", action="store_true", help="only the bound of label_dp")
    parser.add_argument("--inputs", action="store_true", help="only the attacks on inputs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("error")
    began = show_about()
    if options.label_dp:
        found, table = label_dp_table(options.seeds)
        table.show()
        save("label_dp", found, [table], began)
        return
    if options.inputs:
        shown, table = inputs_table(options.seeds, options.epochs)
        table.show()
        save("inputs", shown, [table], began)
        return
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    figures = [figure_of(row, options.seeds, options.steps, options.epochs) for row in chosen]
    table = table_of(figures, options.seeds)
    table.show()
    save("defences", [asdict(one) for one in figures], [table], began)


if __name__ == "__main__":
    main()
