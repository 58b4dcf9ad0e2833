"""`plan.png`: bytes, compute on the device and predicted time along the depth of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spliteasy.planning.choice import Cut
from spliteasy.planning.planner import CutPlan

_UP, _DOWN, _HEAD, _BEST, _OWN, _REFUSED = "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#555555", "#bbbbbb"
_MB = 1e6


def draw(path: Path, plan: CutPlan) -> None:
    """Write the picture. Raises ModuleNotFoundError where matplotlib is not installed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = plan.rows
    depths = [100 * row.depths[0] for row in rows]
    figure, panels = pyplot.subplots(3, 1, figsize=(10, 9), sharex=True, layout="constrained")
    top, middle, bottom = panels

    def line(axes: Any, value: Callable[[Cut], float], color: str, label: str, style: str = "-") -> None:
        values = [value(row) for row in rows]
        axes.plot(depths, values, f".{style}", color=color, label=label, linewidth=1.2, markersize=4)

    line(top, lambda row: row.bytes_up / _MB, _UP, "up")
    line(top, lambda row: row.bytes_down / _MB, _DOWN, "down", "--")
    line(middle, lambda row: row.device_s * 1e3, _HEAD, "device")
    line(middle, lambda row: row.server_s * 1e3, _OWN, "server")
    bottom.stackplot(
        depths,
        [row.link_s * 1e3 for row in rows],
        [row.device_s * 1e3 for row in rows],
        [row.server_s * 1e3 for row in rows],
        labels=["link", "device", "server"],
        colors=[_UP, _HEAD, _OWN],
        alpha=0.45,
    )
    refused = [row for row in rows if row.violates]
    bottom.plot(
        [100 * row.depths[0] for row in refused],
        [row.step_s * 1e3 for row in refused],
        "x",
        color=_REFUSED,
        label="breaks a constraint" if refused else None,
    )
    _mark(bottom, plan.best, _BEST, f"best: {' | '.join(plan.best.cuts)}", "*", 15)
    if plan.own is not None and plan.own.cuts != plan.best.cuts:
        _mark(bottom, plan.own, _OWN, f"the job's: {' | '.join(plan.own.cuts)}", "o", 7)
    second = ", with the best second cut for it" if len(plan.best.cuts) > 1 else ""
    batch = plan.spec.batch_size
    top.set(
        ylabel="MB per step",
        title=f"Bytes over the link, {batch} samples a step",
        yscale=_scale([row.bytes_up + row.bytes_down for row in rows]),
    )
    middle.set(ylabel="ms per step", title="Compute", yscale=_scale([row.device_s for row in rows]))
    bottom.set(
        ylabel="ms per step", title="Predicted time of a step", xlabel=f"first cut, % of operators{second}"
    )
    for axes in panels:
        axes.axvline(100 * plan.best.depths[0], color=_BEST, linewidth=1, alpha=0.5)
        _finish(axes)
    figure.suptitle(f"{plan.spec.name}: where to cut")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _finish(axes: Any) -> None:
    """Give a panel its numbers, its grid and its legend."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", fontsize="small", frameon=False)


def _scale(values: Sequence[float]) -> str:
    """Logarithmic where the values differ by an order."""
    return "log" if min(values) > 0 and max(values) > 10 * min(values) else "linear"


def _mark(axes: Any, cut: Cut, color: str, label: str, marker: str, size: float) -> None:
    axes.plot([100 * cut.depths[0]], [cut.step_s * 1e3], marker, color=color, markersize=size, label=label)
