"""The paper's own experiment: its six networks, trained on a device that has head and tail alone.

    python -m benchmarks.paper [--networks resnet50 vgg19] [--batches 1 8] [--steps 3] [--small]

Each network is cut as in the paper (the first cut right after the stem, the second right before the
classifier), and where the planner would cut it for this link, and trained over emulated Wi-Fi by an agent
in a process of its own. Beside it the whole network trains by plain PyTorch, without a limit of memory and
under one: a real limit of the process, which the split training gets too. A step's time on the device is the
processor time of all that it computes: head, tail, loss, both backwards, both optimizers, packing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.emulator.profiles import PROFILES
from benchmarks.harness.paper_device import FAMILIES, LR, MOMENTUM, network, samples
from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, services
from benchmarks.harness.submission import store_job
from benchmarks.memory import ALLOCATOR
from spliteasy.job import Job, parse_job
from spliteasy.job.source import load_source
from spliteasy.planning.planner import plan_source

LINK = "wifi"
SPREAD_GOAL = 0.25
"""The device's own time a sample stays within this share of its median over the networks, at the stem cut."""

_STEM, _FEATURES = "features.init_block", "features"
CUTS = dict.fromkeys(FAMILIES, (_STEM, _FEATURES)) | {"vgg19": ("features.stage1.unit1", "output.fc2")}
"""The paper's cuts. VGG has no stem; its first layer stands for it."""
ALIKE = ("resnet50", "densenet121", "densenet201")
"""The networks whose stem is one convolution and a pooling. Those of the Inceptions are five to seven
convolutions, and VGG's first layer is a convolution of the whole picture."""


def side_of(name: str, *, small: bool) -> int:
    """Return the pictures' height and width: the network's own, or hardly enough for batch norm."""
    large = name.startswith("inception")
    return (160 if large else 64) if small else (299 if large else 224)


_SIZES = [(name, small) for name in FAMILIES for small in (False, True)]
MODELS = SimpleNamespace(
    **{f"{n}_small" if s else n: partial(network, n, side_of(n, small=s)) for n, s in _SIZES}
)
EXAMPLES = SimpleNamespace(
    **{f"{n}_small" if s else n: partial(samples, 2, side_of(n, small=s)) for n, s in _SIZES}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One network at one batch size: split in one way, or whole."""

    network: str
    batch: int
    way: str
    """ "stem" is the paper's cuts, "planner" the planner's, "whole" plain PyTorch on the device."""
    cuts: tuple[str, ...] = ()
    seconds: float | None = None
    """The time of a sample in all; None where it could not be trained."""
    device_s: float | None = None
    """The time of a sample on the device alone."""
    bytes_up: float = 0.0
    bytes_down: float = 0.0
    grown: int = 0
    """The peak of memory beyond the idle process."""
    fits: bool
    """Trains under the limit."""


def device(field: Field, kind: str, *arguments: str) -> dict[str, Any]:
    """The line that a device's process prints, or the way it ended, as `failed`."""
    process = field.spawn(
        "-m", "benchmarks.harness.paper_device", kind, *arguments, piped=True, env=ALLOCATOR
    )
    line = process.stdout.readline()
    code = process.wait()
    found: dict[str, Any] = json.loads(line) if line else {"failed": f"the process ended with {code}"}
    return found


def split_figures(
    name: str, batches: Sequence[int], steps: int, limit: int, *, small: bool, planned: bool
) -> list[Figure]:
    """The network in segments, at each batch size."""
    label = f"{name}_small" if small else name
    source = load_source(parse_job(job_of(label, CUTS[name], 8, "trace")), None)
    figures = []
    for batch in batches:
        ways = {"stem": CUTS[name]}
        if planned:
            spec = parse_job(
                job_of(
                    label,
                    CUTS[name],
                    batch,
                    "plan",
                    uplink="100mbit",
                    downlink="100mbit",
                    rtt="6ms",
                    device_speed=0.1,
                )
            )
            ways["planner"] = plan_source(replace(source, spec=spec)).best.cuts
        for way, cuts in ways.items():
            if way == "planner" and cuts == CUTS[name]:
                continue
            with services() as running, Field(running) as field:
                made = Job.create(parse_job(job_of(label, cuts, batch, way)), None, source)
                store_job(made, running.store)
                field.worker()
                broker = field.emulator(LINK).url
                size = (name, str(side_of(name, small=small)), str(batch), str(steps))
                free, bound = (
                    device(
                        field,
                        "split",
                        *size,
                        str(most),
                        made.name,
                        broker,
                        str(running.folder / f"phone-{most}"),
                    )
                    for most in (0, limit)
                )
            figures.append(figure(name, batch, way, cuts, free, bound))
    return figures


def whole_figure(name: str, batch: int, steps: int, limit: int, *, small: bool) -> Figure:
    """The whole network on the device."""
    size = ("whole", name, str(side_of(name, small=small)), str(batch), str(steps))
    free, bound = (alone(*size, str(most)) for most in (0, limit))
    return figure(name, batch, "whole", (), free, bound)


def alone(*arguments: str) -> dict[str, Any]:
    """The same as `device`, where there is nothing but the device."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.harness.paper_device", *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, **ALLOCATOR},
        text=True,
        check=False,
    )
    found: dict[str, Any] = (
        json.loads(ran.stdout) if ran.stdout else {"failed": f"the process ended with {ran.returncode}"}
    )
    return found


def figure(
    name: str, batch: int, way: str, cuts: tuple[str, ...], free: dict[str, Any], bound: dict[str, Any]
) -> Figure:
    """The figure of a run without a limit (`free`) and of one under it. Raises RuntimeError where the first
    has failed."""
    if "failed" in free:
        raise RuntimeError(f"{name} at batch {batch}, {way}: {free['failed']}")
    return Figure(
        network=name,
        batch=batch,
        way=way,
        cuts=cuts,
        seconds=statistics.median(free["seconds"]) / batch,
        device_s=statistics.median(free["computed"]) / batch,
        bytes_up=free.get("up", 0) / batch,
        bytes_down=free.get("down", 0) / batch,
        grown=free["grown"],
        fits="failed" not in bound,
    )


def job_of(label: str, cuts: tuple[str, ...], batch: int, way: str, **plan: Any) -> dict[str, Any]:
    return {
        "name": f"{label}-{batch}-{way}".replace("_", "-"),
        "batch_size": batch,
        "epochs": 1000,
        "model": {
            "factory": f"benchmarks.paper:MODELS.{label}",
            "example": f"benchmarks.paper:EXAMPLES.{label}",
            "cuts": cuts,
        },
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
        "plan": plan,
    }


def tables_of(figures: Sequence[Figure], limit_mb: int) -> list[Table]:
    head = [
        *("network", "batch", "cut", "s a sample", "s on the device", "MB up", "MB down"),
        *("MB at the peak", f"in {limit_mb} MB"),
    ]
    rows = [
        [
            one.network,
            str(one.batch),
            " and ".join(one.cuts) if one.way == "planner" else one.way,
            f"{one.seconds:.2f}",
            f"{one.device_s:.3f}",
            f"{one.bytes_up / 1e6:.1f}" if one.cuts else "",
            f"{one.bytes_down / 1e6:.1f}" if one.cuts else "",
            f"{one.grown / 1e6:.0f}",
            "trains" if one.fits else "no memory",
        ]
        for one in figures
    ]
    table, spread = Table(f"The paper's networks over {LINK}", head, rows), spread_of(figures)
    return [table, spread] if spread.rows else [table]


def spread_of(figures: Sequence[Figure]) -> Table:
    """The device's own time at the stem cut, over the networks that have the same stem and over all."""
    rows = []
    groups = [("one convolution of 7 × 7, and pooling", ALIKE), ("all", tuple(FAMILIES))]
    for (stem, networks), batch in product(groups, sorted({one.batch for one in figures})):
        at_stem = [one for one in figures if one.way == "stem" and one.batch == batch]
        times = [one.device_s or 0.0 for one in at_stem if one.network in networks]
        if len(times) < 2:
            continue  # one network has no spread
        middle = statistics.median(times)
        low, high = min(times) / middle - 1, max(times) / middle - 1
        met = max(-low, high) <= SPREAD_GOAL
        rows.append(
            [
                stem,
                str(batch),
                str(len(times)),
                f"{middle:.3f}",
                f"{low:+.0%} to {high:+.0%}",
                goal(f"within ±{SPREAD_GOAL:.0%}", met) if networks is ALIKE else "",
            ]
        )
    head = ["stem", "batch", "networks", "median s on the device", "spread", "goal"]
    return Table("The device's time a sample at the stem cut, over the networks", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--steps", type=int, default=3, help="steps measured of each")
    parser.add_argument(
        "--limit-mb", type=int, default=512, help="the device's memory beyond the idle process"
    )
    parser.add_argument("--small", action="store_true", help="small pictures: a trial of the benchmark")
    parser.add_argument("--no-planner", action="store_true", help="the paper's cuts alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    assert LINK in PROFILES
    began, limit = show_about(), options.limit_mb * 10**6
    figures: list[Figure] = []
    for name in options.networks:
        whole = [
            whole_figure(name, batch, options.steps, limit, small=options.small) for batch in options.batches
        ]
        split = split_figures(
            name, options.batches, options.steps, limit, small=options.small, planned=not options.no_planner
        )
        figures += sorted((*split, *whole), key=lambda one: one.batch)
        tables = tables_of(figures, options.limit_mb)
        save("paper", [asdict(one) for one in figures], tables, began)
        print(name, file=sys.stderr, flush=True)
    for table in tables:
        table.show()


if __name__ == "__main__":
    main()
