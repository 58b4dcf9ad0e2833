"""The memory that a training takes, against the tensors that it has to hold: `python -m benchmarks.memory`.

What a side has to hold is measured, not added up: its segments train in a plain process, with the other
side's tensors made up on the spot, and the process's peak is compared with what it held before there was
a model. The same is done to our agent and worker in training. So both include weights, momentum, the graph
and what torch's kernels want; ours has the messages, frames, log and checkpoints beside them. The allocator
gives large blocks back at once here, for all alike, so that resident memory is what is in use.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from benchmarks.harness.report import Table, goal, save, show_about
from benchmarks.harness.services import Field, Services, services
from benchmarks.harness.submission import enter_ours, until_served
from benchmarks.harness.timed_runs import answer, peak_bytes, resident_bytes
from benchmarks.harness.workloads import WORKLOADS, Setting, Workload

GOAL = 3.0
STEPS = {"W0": 40, "W1": 5, "W2": 12}
"""Enough for a checkpoint or more."""
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "MALLOC_TOP_PAD_": "0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One side of one training: peak growth of its process, in bytes."""

    workload: str
    side: str
    codec: str
    held: int
    """The bytes that the plain process holds: what a step has to hold."""
    ours: int

    @property
    def ratio(self) -> float:
        return self.ours / self.held


def held_bytes(field: Field, workload: Workload, side: str) -> int:
    """The peak growth of a plain process that trains that side's segments."""
    arguments = ["-m", "benchmarks.memory", "--hold", workload.name, side]
    process = field.enter(f"plain {side}", arguments, {}, env=ALLOCATOR)
    field.contestants.pop()
    return int(process.ready["grown"])


def hold(workload: Workload, side: str) -> int:
    """Train one side for some steps in this process; how far its memory grew."""
    before = resident_bytes(os.getpid())
    head, body, tail = workload.parts(workload.model())
    a_shape, b_shape = workload.sizes()
    batches = workload.batches()
    modules = [body] if side == "worker" else [head, tail]
    optimizer = workload.optimizer(p for module in modules for p in module.parameters())
    for _ in range(3):
        if side == "worker":
            arrived = torch.randn(a_shape).requires_grad_()
            body(arrived).backward(torch.randn(b_shape))
        else:
            images, labels = next(batches)
            activations = head(images)
            arrived = torch.randn(b_shape).requires_grad_()
            F.cross_entropy(tail(arrived), labels).backward()
            activations.backward(torch.randn(a_shape))
        optimizer.step()
        optimizer.zero_grad()
    return peak_bytes(os.getpid()) - before


def measure(running: Services, workload: Workload, setting: Setting, steps: int) -> list[Figure]:
    """Agent and worker beside each other, and each side's own part in a plain process."""
    with Field(running) as field:
        held = {side: held_bytes(field, workload, side) for side in ("agent", "worker")}
        worker = field.worker(env=ALLOCATOR)
        asyncio.run(until_served(running.store))
        idle = resident_bytes(worker)
        name = f"memory {setting.activations}"
        agent = enter_ours(field, workload, name, setting, worker, env=ALLOCATOR)
        agent.lap(steps)
        grown = {
            "agent": peak_bytes(agent.device.pid) - agent.ready["resident"],
            "worker": peak_bytes(worker) - idle,
        }
    return [
        Figure(
            workload=workload.name, side=side, codec=setting.activations, held=held[side], ours=grown[side]
        )
        for side in held
    ]


def table_of(figures: Sequence[Figure]) -> Table:
    rows = [
        [
            one.workload,
            one.side,
            one.codec,
            f"{one.held / 1e6:.0f}",
            f"{one.ours / 1e6:.0f}",
            f"{one.ratio:.2f}",
            goal(f"≤ {GOAL:.0f}", one.ratio <= GOAL),
        ]
        for one in figures
    ]
    head = ["workload", "side", "codec", "MB to hold", "MB at the peak", "×", "goal"]
    return Table("Memory of a training, above the idle process", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=["W1", "W2"])
    parser.add_argument("--codecs", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--hold", nargs=2, metavar=("WORKLOAD", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hold:
        torch.set_num_threads(1)
        name, side = options.hold
        answer({"grown": hold(WORKLOADS[name], side)})
        return
    began = show_about()
    figures = []
    with services() as running:
        for name in options.workloads:
            for codec in options.codecs:
                setting = Setting(activations=codec, gradients=codec)
                figures += measure(running, WORKLOADS[name], setting, STEPS[name])
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    table = table_of(figures)
    table.show()
    save("memory", [{**asdict(one), "ratio": one.ratio} for one in figures], [table], began)


if __name__ == "__main__":
    main()
