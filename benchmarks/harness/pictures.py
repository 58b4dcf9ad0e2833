"""Pictures of the figures that benchmarks left under runs/bench: bars with the goal as a line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Bars = list[tuple[str, float]]


class _Picture(NamedTuple):
    title: str
    bars_of: Callable[[Any], Bars]
    goal: float | None = None
    most: float = math.inf
    """Bars are cut there; their labels say what they are."""


def draw(folder: Path) -> list[Path]:
    """Draw what is there; returns the pictures."""
    drawn = []
    for name, picture in _PICTURES.items():
        file = folder / f"{name}.json"
        if file.exists():
            drawn.append(folder / f"{name}.png")
            _draw(picture, picture.bars_of(json.loads(file.read_text())["figures"]), drawn[-1])
    return drawn


def _draw(picture: _Picture, bars: Bars, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.3 * len(bars)), layout="constrained")
    names, values = zip(*bars, strict=True)
    # Names may be the same twice: the bars go by their places.
    drawn = axes.barh(range(len(bars)), [min(value, picture.most) for value in values], color="#4477aa")
    axes.bar_label(drawn, labels=[f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(bars)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    if picture.goal is not None:
        axes.axvline(picture.goal, color="#cc3311", linestyle="--", label=f"goal {picture.goal:g}")
        axes.legend(fontsize=8)
    axes.set_title(picture.title, loc="left", fontsize=10)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


def _healthy(figures: Any) -> Bars:
    return [
        (f"{one['workload']} {one['system']}", one["ratio"])
        for one in figures
        if not one["system"].startswith("plain")
    ]


def _links(figures: Any) -> Bars:
    return [
        (f"{one['workload']} {one['profile']} {one['codec']} M={one['micro_batches']}", one["ratio"])
        for one in figures
    ]


def _many(figures: Any) -> Bars:
    return [(f"{one['devices']} devices", one["share"]) for one in figures]


def _scale(figures: Any) -> Bars:
    return [
        (f"{one['workers']} workers that wait {one['wait_s'] * 1000:.0f} ms", one["efficiency"])
        for one in figures
        if one["wait_s"]
    ]


def _memory(figures: Any) -> Bars:
    return [(f"{one['workload']} {one['side']} {one['codec']}", one["ratio"]) for one in figures]


def _durability(figures: Any) -> Bars:
    return [(f"{one['workload']} {one['store']}", one["ratio"]) for one in figures]


def _profile(figures: Any) -> Bars:
    return [
        (f"{one['workload']}: {part}", value)
        for one in figures
        for part, value in sorted(one["parts_ms"].items(), key=lambda item: -item[1])[:8]
    ]


def _paper(figures: Any) -> Bars:
    return [
        (f"{one['network']}, batch {one['batch']}, {one['way']}", one["device_s"])
        for one in figures
        if one["way"] != "planner"
    ]


_PICTURES = {
    "healthy": _Picture("Healthy loopback: step time over plain PyTorch (cut at 6)", _healthy, most=6.0),
    "links": _Picture("Emulated links: step time over the bound", _links, 1.15),
    "many": _Picture("Share of the time that the worker computes, 100 ms round trip", _many, 0.95),
    "scale": _Picture("Workers: steps a second over what they could wait for", _scale, 0.9),
    "memory": _Picture("Peak memory over what the tensors need", _memory, 3.0),
    "durability": _Picture("Step time with Redis over in memory only", _durability, 1.1),
    "profile": _Picture("Where the time of a step goes, ms", _profile),
    "paper": _Picture(
        "The paper's networks: seconds a sample on the device, cut at the stem and whole", _paper
    ),
}
