"""The effect and the cost of each defence of `[privacy]`, on the digits: attacks, accuracy, bytes and time.

    python -m benchmarks.defences [--only none strict] [--seeds 2]
    python -m benchmarks.defences --each
    python -m benchmarks.defences --label-dp [--seeds 5]
    python -m benchmarks.defences --inputs|--patches [--seeds 2]

Every row is a pair of cuts under some settings. Attacks are those of `spliteasy leakage` on what one device
of 360 images sends, 36 of them canaries, in 48 steps; "worst" is the best attack's mean share. Accuracy is
that of whole trainings through agent and worker, without canaries; bytes and seconds are theirs.
`--each`: every defence, by one seed, in a table of its own. With `--label-dp`: canaries under randomized
response, by attacks on public ends that read every label that is trained on, beside the theorem's bound.
With `--inputs` and `--patches`: the error of reconstructed inputs. The tables go to docs/privacy.md by
`python -m benchmarks.harness.document`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.accuracy import train_devices
from benchmarks.harness import patch_digits, two_digits
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
    task: str = "digits"


PATCHES, TWO = "patches", "two classes"
DATA[PATCHES], DATA[TWO] = DATA["digits"], f"{two_digits.__name__}:device_data"
ROWS = (
    Row("none", SHIPPED, {}, TWO),
    Row("marvell 4", SHIPPED, {"marvell": 4.0}, TWO),
    Row("marvell 16", SHIPPED, {"marvell": 16.0}, TWO),
    Row("none", ("stem", "body"), {}, PATCHES),
    Row("shuffle_tokens", ("stem", "body"), {"shuffle_tokens": True}, PATCHES),
    Row("none", SHIPPED, {}),
    Row("strict", SHIPPED, {"preset": "strict"}),
    Row("max_norm", SHIPPED, {"gradient_noise": "max_norm"}),
    Row("noise 1", SHIPPED, {"gradient_noise": 1.0}),
    Row("noise 6", SHIPPED, {"gradient_noise": 6.0}),
    Row("clip 8, noise 0.03", SHIPPED, {"clip_activations": 8.0, "noise_activations": 0.03}),
    Row("nopeek 0.5", SHIPPED, {"nopeek": 0.5}),
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
    task: str
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
    if row.task == PATCHES:
        job = patch_digits.job_of(seed, epochs)
    elif row.task == TWO:
        job = two_digits.job_of(job)
    job["model"]["cuts"] = list(row.cuts)
    return parse_job(job | {"privacy": row.privacy})


def attacked(
    spec: JobSpec, task: str, seed: int, attacks: Sequence[str], steps: int
) -> dict[str, dict[str, float]]:
    """The share that each attack recovers: of canaries and of all labels."""
    measured = asyncio.run(measure(spec, ROOT, DATA[task], attacks=attacks, seed=seed, steps=steps))
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
        leaks.append(attacked(spec, row.task, seed, LABEL_ATTACKS, steps))
        with TemporaryDirectory(prefix="spliteasy-defences-") as folder:
            job, began = Job.create(spec, ROOT), time.perf_counter()
            ends += asyncio.run(train_devices(job, row.task, ["phone-1"], Path(folder)))
            seconds.append(time.perf_counter() - began)
    canaries = [leak["canary_recovery"] for leak in leaks]
    return Figure(
        name=row.name,
        cuts=row.cuts,
        task=row.task,
        canaries={name: statistics.mean(c[name] for c in canaries) for name in canaries[0]},
        labels=statistics.mean(max(leak["label_recovery"].values()) for leak in leaks),
        accuracy=statistics.mean(end[0] for end in ends),
        bytes_up=statistics.mean(end[2] for end in ends),
        seconds=statistics.mean(seconds),
    )


def table_of(figures: Sequence[Figure], seeds: int) -> Table:
    """All rows; the goal is strict's."""
    plain = {(one.task, one.cuts): one.accuracy for one in figures if one.name == "none"}
    rows = []
    for one in figures:
        lost = plain.get((one.task, one.cuts), math.nan) - one.accuracy
        most = max(one.canaries, key=lambda name: one.canaries[name])
        met = one.canaries[most] <= CANARY_GOAL and lost <= POINTS_GOAL
        aim = goal(f"≤ {CANARY_GOAL} at ≤ {POINTS_GOAL} points", met) if one.name == "strict" else ""
        rows.append(
            [
                f"`{one.cuts[1]}`" + ("" if one.task == "digits" else f", {one.task}"),
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


INPUT_ATTACKS = (
    "linear-decoder",
    "convolutional-decoder",
    "unsplit",
    "evaluation-inversion",
    "linkage",
    "evaluation-linkage",
)
INPUT_ROWS = tuple(
    Row(name, cuts, privacy)
    for cuts in (SHIPPED, ("blocks.0", "pool"))
    for name, privacy in (
        ("none", {}),
        ("nopeek 0.5", {"nopeek": 0.5}),
        ("nopeek 5", {"nopeek": 5.0}),
        ("clip 8, noise 0.03", {"clip_activations": 8.0, "noise_activations": 0.03}),
        ("clip 8, noise 0.1", {"clip_activations": 8.0, "noise_activations": 0.1}),
    )
)
PATCH_ROWS = tuple(
    Row(f"{name}, ends {ends}", ("stem", "body"), {"ends": ends, **privacy}, PATCHES)
    for ends in ("secret", "public")
    for name, privacy in (("none", {}), ("shuffle_tokens", {"shuffle_tokens": True}))
)


def inputs_tables(
    chosen: Sequence[Row], seeds: int, epochs: int | None
) -> Iterator[tuple[list[dict[str, Any]], Table]]:
    """Mean squared error of inputs that a worker with public data, or with no data, reconstructs, and the
    share of samples that it finds again; once more with each row. Seconds are of the last training."""
    figures, rows = [], []
    head = ["first cut", "defence", *INPUT_ATTACKS, "accuracy %", "kB up a step", "s"]
    title = f"Mean squared error of reconstructed inputs, and samples found again ({seeds} seeds)"
    for row in chosen:
        errors, ends, seconds = [], [], 0.0
        for seed in range(seeds):
            spec = spec_of(row, seed, epochs)
            measured = asyncio.run(measure(spec, ROOT, DATA[row.task], attacks=INPUT_ATTACKS, seed=seed))
            errors.append({each.attack: each.score.value for each in measured.rows if each.score})
            with TemporaryDirectory(prefix="spliteasy-defences-") as folder:
                job, began = Job.create(spec, ROOT), time.perf_counter()
                ends += asyncio.run(train_devices(job, row.task, ["phone-1"], Path(folder)))
                seconds = time.perf_counter() - began
        means = {name: statistics.mean(error[name] for error in errors) for name in errors[0]}
        up = statistics.mean(end[2] for end in ends)
        accuracy = statistics.mean(end[0] for end in ends)
        figures.append(
            {"name": row.name, "cuts": row.cuts, "task": row.task, "errors": means, "accuracy": accuracy}
        )
        shown = [f"{means[name]:.4f}" if name in means else "" for name in INPUT_ATTACKS]
        cut = f"`{row.cuts[0]}`" + ("" if row.task == "digits" else f", {row.task}")
        rows.append([cut, row.name, *shown, f"{accuracy:.1f}", f"{up / 1000:.0f}", f"{seconds:.0f}"])
        yield figures, Table(title, head, rows)


def label_dp_table(seeds: int) -> tuple[list[dict[str, float]], Table]:
    """Canaries recovered under randomized response beside the bound of its theorem."""
    figures, rows = [], []
    for epsilon in EPSILONS:
        shares, samples = [], 0
        for seed in range(seeds):
            row = Row("label_dp", SHIPPED, {"ends": "public", "label_dp": epsilon})
            found = attacked(spec_of(row, seed), row.task, seed, ("tail-tracking", "few-labels"), 18)
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
    parser.add_argument("--each", action="store_true", help="every defence, by one seed, in a table")
    parser.add_argument("--label-dp", action="store_true", help="only the bound of label_dp")
    parser.add_argument("--inputs", action="store_true", help="only the attacks on inputs")
    parser.add_argument("--patches", action="store_true", help="the same behind patches that are shuffled")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logs.configure("error")
    began = show_about()
    if options.label_dp:
        found, table = label_dp_table(options.seeds)
        table.show()
        save("label_dp", found, [table], began)
        return
    if options.inputs or options.patches:
        name, asked = ("patches", PATCH_ROWS) if options.patches else ("inputs", INPUT_ROWS)
        for shown, table in inputs_tables(asked, options.seeds, options.epochs):
            save(name, shown, [table], began)  # a run that is stopped keeps these
        table.show()
        return
    chosen = [row for row in ROWS if not options.only or row.name in options.only]
    seeds, name = (1, "each_defence") if options.each else (options.seeds, "defences")
    figures: list[Figure] = []
    for row in chosen:
        figures.append(figure_of(row, seeds, options.steps, options.epochs))
        table = table_of(figures, seeds)
        save(name, [asdict(one) for one in figures], [table], began)  # a run that is stopped keeps these
    table.show()


if __name__ == "__main__":
    main()
