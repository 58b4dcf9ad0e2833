"""Measure the pipeline itself: steps of a job whose computing takes next to nothing."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from broker.transport.in_process import MemoryBroker
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.link.link import Connect
from device_agent.observations import Observation, StepTaken
from server_worker.config import Trust
from server_worker.store import open_store
from spliteasy.job import Job, parse_job
from spliteasy.planning.planner import CutPlan, plan_job
from spliteasy.planning.profile import Overhead
from spliteasy.runtime.torch_thread import Compute, TorchThread
from spliteasy_cli.commands.submit import store_job
from spliteasy_cli.support.embedded import async_connect, workers_running

ROOT = Path(__file__).parents[2]
BATCH = 64
WIDTHS = (64, 8192)
"""The widths of what crosses the cut: 16 kB and 2 MB a message."""
STEPS, WARM_UP = 20, 3


class Probe(nn.Module):
    """Sends `width` numbers a sample up and down, and hardly computes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.head = nn.Linear(4, width)
        self.body = _Scale()
        self.tail = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.body(self.head(x)))
        return logits


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def narrow() -> nn.Module:
    return Probe(WIDTHS[0])


def wide() -> nn.Module:
    return Probe(WIDTHS[1])


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 4), torch.zeros(BATCH, dtype=torch.int64)


def data() -> TensorDataset:
    return TensorDataset(*example())


def probe_job(factory: str) -> dict[str, Any]:
    """Return a probe's job, as a job file would have it."""
    return {
        "name": f"profile-{factory}",
        "batch_size": BATCH,
        "epochs": 10 * STEPS,
        "model": {
            "factory": f"{__name__}:{factory}",
            "example": f"{__name__}:example",
            "cuts": ["head", "body"],
        },
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.01},
    }


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe: what a step takes beside its computing, and the bytes it moves."""

    beside_s: float
    bytes_moved: int


def overhead_of(small: Probed, large: Probed) -> Overhead:
    """Two round trips a step, and the rest by the byte."""
    byte_s = (large.beside_s - small.beside_s) / (large.bytes_moved - small.bytes_moved)
    rest_s = small.beside_s - max(0.0, byte_s) * small.bytes_moved
    return Overhead(round_trip_s=max(0.0, rest_s / 2), byte_s=max(0.0, byte_s))


def probed(plan: CutPlan, seconds: Sequence[float]) -> Probed:
    """Return what the measured steps took beside the computing that the plan predicts."""
    assert plan.own is not None, "probes name their cuts"
    computing_s = plan.own.device_s + plan.own.server_s
    return Probed(max(0.0, statistics.median(seconds) - computing_s), plan.own.bytes_up + plan.own.bytes_down)


async def embedded_overhead() -> Overhead:
    """Measure the overhead of agent, worker and store in this process, without a broker's or a
    link's part."""
    results = []
    with TemporaryDirectory(prefix="spliteasy-profile-") as name:
        folder = Path(name)
        for factory in ("narrow", "wide"):
            spec = parse_job(probe_job(factory))
            plan = plan_job(spec, ROOT)
            job = Job.create(spec, ROOT)
            store = await open_store(f"sqlite:///{folder / factory}.sqlite")
            connect_as = async_connect(MemoryBroker())
            try:
                await store_job(store, job)
                async with workers_running(1, store, connect_as, trust=Trust.ENROLLED):
                    seconds = await step_seconds(
                        job.name,
                        f"{__name__}:data",
                        connect=partial(connect_as, "phone"),
                        state=folder / factory,
                    )
            finally:
                await store.close()
            results.append(probed(plan, seconds))
    return overhead_of(*results)


async def step_seconds(
    job: str,
    data: str,
    *,
    connect: Connect,
    state: Path,
    steps: int = STEPS,
    warm_up: int = WARM_UP,
    root: Path = ROOT,
    compute: Compute | None = None,
) -> list[float]:
    """Train so many steps after a few that warm up, as device `phone`: the seconds of each."""
    enough = asyncio.Event()
    seconds: list[float] = []

    def observe(observation: Observation) -> None:
        if isinstance(observation, StepTaken):
            seconds.append(observation.seconds)
            if len(seconds) >= warm_up + steps:
                enough.set()

    config = AgentConfig(job=job, device="phone", data=data, state=state, root=root)
    thread = TorchThread("phone")
    try:
        await Agent(config, connect=connect, compute=compute or thread, observe=observe).run(enough)
    finally:
        thread.close()
    return seconds[warm_up : warm_up + steps]
