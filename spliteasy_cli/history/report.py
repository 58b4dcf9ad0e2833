"""The report of a training run: numbers per device, `report.json`, `report.png` and a closing table."""

from __future__ import annotations

import os
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from rich.table import Table

LOSS_STEPS = 20
"""The reported training loss is the mean of this many last steps: a single batch says little."""

RECENT_STEPS = 50
"""The remaining time is estimated by this many last steps."""

NOT_MEASURED, NOT_FINITE = "not measured", "not finite"
"""Texts in place of a number that nobody measured, and of one that is NaN or infinite."""

MANY_DEVICES = 20
"""The closing table shows three of more devices than these, and the picture names none."""

SMOOTHING = 0.9
"""The share of the running mean that stays at each step in the picture of the loss."""


@dataclass(slots=True)
class DeviceRun:
    """One device's training as its agent reported it, step by step."""

    device: str
    step: int = 0
    """The last committed step."""
    total_steps: int = 0
    steps: int = 0
    """Steps taken in this run (a resumed run counts only its own)."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, training loss of the batch), where it was measured"""
    evaluations: list[tuple[int, float | None, float | None]] = field(default_factory=list)
    """(step, mean loss, accuracy) on the held-out data, in the order of the evaluations; None where it was
    not measured"""
    metrics: dict[int, Mapping[str, float | None]] = field(default_factory=dict)
    """The metrics that the job names, by the steps after which they were measured."""
    samples: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    step_bytes: list[int] = field(default_factory=list)
    """Bytes both ways between a step and the next, where nothing but steps happened in between."""
    lately: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Seconds of the last steps."""
    step_seconds: float = 0.0
    """Wall time of the counted steps: reconnects within them are in it, evaluations are not."""
    state: str = "connecting"
    round: int | None = None
    """The last round whose mean the device went on from; None: it is in no fleet."""
    alone: list[tuple[int, float]] = field(default_factory=list)
    """(step, accuracy) of a training on this device's data only; empty where there was none"""

    @property
    def train_loss(self) -> float | None:
        last = [loss for _, loss in self.losses[-LOSS_STEPS:]]
        return sum(last) / len(last) if last else None

    @property
    def test_accuracy(self) -> float | None:
        return self.evaluations[-1][2] if self.evaluations else None

    @property
    def test_metrics(self) -> Mapping[str, float | None]:
        """The metrics of the last evaluation: of the best one, where the training has gone back to it."""
        return self.metrics.get(self.evaluations[-1][0], {}) if self.evaluations else {}

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.step_seconds if self.step_seconds else 0.0

    @property
    def ms_per_step(self) -> float | None:
        return 1000 * self.step_seconds / self.steps if self.steps else None

    @property
    def bytes_per_step(self) -> float | None:
        """Median over the steps: neither the job's download nor evaluations are in it."""
        return statistics.median(self.step_bytes) if self.step_bytes else None

    @property
    def seconds_left(self) -> float | None:
        """Return the time for the remaining steps at the pace of the last; pauses and evaluations are not
        counted."""
        steps = self.total_steps - self.step
        return steps * statistics.mean(self.lately) if self.lately and steps > 0 else None

    @property
    def bytes_left(self) -> float | None:
        """Return the bytes for the remaining steps, if they are like the last ones."""
        steps, lately = self.total_steps - self.step, self.step_bytes[-RECENT_STEPS:]
        return steps * statistics.mean(lately) if lately and steps > 0 else None

    def summary(self) -> dict[str, Any]:
        """Return the device's entry in report.json.

        Bytes are totals up to the last step, with the job's download and the evaluations before it.
        """
        return {
            "device": self.device,
            "steps": self.steps,
            "train_loss": as_json(self.train_loss),
            "test_accuracy": as_json(self.test_accuracy),
            **({"test_metrics": _as_json(self.test_metrics)} if self.metrics else {}),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "ms_per_step": self.ms_per_step,
            **({"rounds": self.round} if self.round is not None else {}),
            **({"alone_accuracy": self.alone[-1][1]} if self.alone else {}),
        }


def _as_json(metrics: Mapping[str, float | None]) -> dict[str, Any]:
    return {name: as_json(value) for name, value in metrics.items()}


def write_json(path: Path, runs: Sequence[DeviceRun], about: Mapping[str, Any]) -> None:
    """Write report.json: `about` at the top level, one entry a device, and the curves."""
    report = {
        **about,
        "devices": [run.summary() for run in runs],
        "curves": {
            run.device: {
                "train_loss": [(step, as_json(loss)) for step, loss in run.losses],
                "evaluations": [
                    {
                        "step": step,
                        "loss": as_json(loss),
                        "accuracy": as_json(accuracy),
                        **({"metrics": _as_json(run.metrics[step])} if step in run.metrics else {}),
                    }
                    for step, loss, accuracy in run.evaluations
                ],
            }
            for run in runs
        },
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    os.replace(temporary, path)


def table(runs: Sequence[DeviceRun]) -> Table:
    """Return the closing table."""
    from rich.table import Table

    grid = Table(title="Result", title_justify="left")
    grid.add_column("device")
    compared = any(run.alone for run in runs)
    accuracy = ("accuracy alone", "common model") if compared else ("test accuracy",)
    metrics = list(dict.fromkeys(name for run in runs for name in run.test_metrics))
    for column in ("steps", "train loss", *accuracy, *metrics, "bytes/step", "ms/step"):
        grid.add_column(column, justify="right")
    shown = runs if len(runs) <= MANY_DEVICES else _examples(runs)
    if len(shown) < len(runs):
        grid.caption = f"the least, the median and the most accurate of {len(runs)} devices"
    for run in shown:
        alone = [number(run.alone[-1][1] if run.alone else None, ".4f")] if compared else []
        grid.add_row(
            run.device,
            str(run.steps),
            number(run.train_loss, ".4f", absent=NOT_MEASURED),
            *alone,
            number(run.test_accuracy, ".4f", absent=NOT_MEASURED),
            *(number(run.test_metrics.get(name), ".4f", absent=NOT_MEASURED) for name in metrics),
            number(run.bytes_per_step, ",.0f"),
            number(run.ms_per_step, ".1f"),
        )
    return grid


def _examples(runs: Sequence[DeviceRun]) -> list[DeviceRun]:
    """Return the least, the median and the most accurate of many; where nothing was measured, by loss."""

    def rank(run: DeviceRun) -> tuple[float, float]:
        loss = run.train_loss
        return run.test_accuracy or 0.0, -loss if loss is not None and isfinite(loss) else 0.0

    ranked = sorted(runs, key=rank)
    return [ranked[0], ranked[len(ranked) // 2], ranked[-1]]


def number(value: float | None, form: str, *, absent: str = "–") -> str:
    """Return a number for a person; `absent` where it was not measured."""
    if value is None:
        return absent
    return format(value, form) if isfinite(value) else NOT_FINITE


def as_json(value: float | None) -> float | str | None:
    """Return a number in JSON, which has no NaN: null where it was not measured, a text if not finite."""
    return value if value is None or isfinite(value) else NOT_FINITE


def draw(path: Path, runs: Sequence[DeviceRun], title: str) -> None:
    """Draw report.png: training loss (faint: each batch; bold: running mean) and accuracy over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=120, layout="constrained")
    for index, run in enumerate(runs):
        color = f"C{index % 10}"
        steps = [step for step, _ in run.losses]
        losses = [loss for _, loss in run.losses]
        left.plot(steps, losses, color=color, alpha=0.18, linewidth=0.8)
        left.plot(steps, _smooth(losses), color=color, linewidth=1.6, label=run.device)
        points = sorted({(step, accuracy) for step, _, accuracy in run.evaluations if accuracy is not None})
        right.plot(*zip(*points, strict=True) if points else ([], []), color=color, marker="o", markersize=3)
        if run.alone:
            right.plot(*zip(*run.alone, strict=True), color=color, linestyle=":", marker="x", markersize=3)
    if any(loss > 0 for run in runs for _, loss in run.losses):
        left.set_yscale("log")
    measured = any(run.test_accuracy is not None for run in runs)
    compared = any(run.alone for run in runs)
    accuracy = "Accuracy (dotted: each device alone)" if compared else "Accuracy"
    left.set(xlabel="step", ylabel="training loss", title="Loss")
    right.set(
        xlabel="step",
        ylabel="accuracy on held-out data",
        title=accuracy if measured else f"Accuracy: {NOT_MEASURED}",
    )
    if len(runs) <= MANY_DEVICES:
        left.legend(loc="best", fontsize="small", frameon=False, ncols=1 + len(runs) // 9)
    for axes in (left, right):
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path)
    pyplot.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential running mean, without the bias of its start."""
    out: list[float] = []
    mean = weight = 0.0
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        out.append(mean / weight)
    return out
