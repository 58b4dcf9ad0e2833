"""A device of `benchmarks.paper`, as a process of its own under a limit of memory.

    python -m benchmarks.harness.paper_device split NETWORK SIDE BATCH STEPS LIMIT JOB BROKER STATE
    python -m benchmarks.harness.paper_device whole NETWORK SIDE BATCH STEPS LIMIT

It prints one line of JSON: seconds and computing seconds of each step, and how far the process's memory grew;
or `failed`, where the limit left too little. LIMIT is in bytes beyond what the process has before there is a
model, and 0 means none.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.harness.timed_runs import answer, peak_bytes, resident_bytes
from broker import connect
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from device_agent.training.data import DeviceData
from spliteasy.errors import SplitEasyError
from spliteasy.observability import logs
from spliteasy.runtime.event_loop import new_runner
from spliteasy.runtime.torch_thread import TorchThread, finds_no_memory

T = TypeVar("T")
CLASSES, LR, MOMENTUM = 1000, 1e-5, 0.9
WARM_UP, ITS_OWN = 1, 224

FAMILIES = {
    "resnet50": "resnet",
    "vgg19": "vgg",
    "inceptionv3": "inceptionv3",
    "inceptionresnetv2": "inceptionresnetv2",
    "densenet121": "densenet",
    "densenet201": "densenet",
}
"""The networks, by the module of pytorchcv that makes them."""


def network(name: str, side: int) -> nn.Module:
    """The network with random weights, for pictures of that size."""
    make = getattr(import_module(f"pytorchcv.models.{FAMILIES[name]}"), name)
    made: nn.Module = make(num_classes=CLASSES)
    if side < ITS_OWN:  # the last pooling takes what there is of a small picture
        features = made.get_submodule("features")
        features.add_module("final_pool", nn.AdaptiveAvgPool2d(7 if name == "vgg19" else 1))
    return made


def samples(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Pictures and classes, drawn."""
    generator = torch.Generator().manual_seed(7)
    pictures = torch.randn(count, 3, side, side, generator=generator)
    return pictures, torch.randint(CLASSES, (count,), generator=generator)


def limit_memory(nbytes: int) -> None:
    """Let the process have so much more data than it has now; the kernel refuses more."""
    if not nbytes:
        return
    with open("/proc/self/status") as file:
        (now,) = (int(line.split()[1]) * 1024 for line in file if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + nbytes, now + nbytes))


def train_whole(name: str, side: int, batch: int, steps: int) -> dict[str, Any]:
    """Train the whole network by plain PyTorch."""
    model = network(name, side).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    pictures, labels = samples(batch, side)
    seconds = []
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        F.cross_entropy(model(pictures), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return {"seconds": seconds[WARM_UP:], "computed": seconds[WARM_UP:]}


@dataclass(slots=True)
class _Counted:
    """Computes, and counts the processor time that it takes."""

    thread: TorchThread
    seconds: float = 0.0

    async def __call__(self, run: Callable[[], T]) -> T:
        return await self.thread(lambda: self._timed(run))

    def _timed(self, run: Callable[[], T]) -> T:
        began = time.thread_time()
        try:
            return run()
        finally:
            self.seconds += time.thread_time() - began


async def train_split(side: int, batch: int, steps: int, job: str, broker: str, state: str) -> dict[str, Any]:
    """Train as an agent does: the head and the tail here, the body on a worker."""
    compute, enough = _Counted(TorchThread("phone")), asyncio.Event()
    taken: list[tuple[float, float, int, int]] = []

    def observe(observation: Observation) -> None:
        if isinstance(observation, StepTaken):
            about = (observation.seconds, compute.seconds, observation.bytes_up, observation.bytes_down)
            taken.append(about)
            if len(taken) > WARM_UP + steps:
                enough.set()

    data = DeviceData(TensorDataset(*samples(2 * batch, side)), None)
    config = AgentConfig(job=job, device=Path(state).name, data=data, state=Path(state))
    try:
        await Agent(config, connect=lambda: connect(broker), compute=compute, observe=observe).run(enough)
    finally:
        compute.thread.close()
    measured = list(zip(taken[WARM_UP:], taken[WARM_UP + 1 :], strict=False))[:steps]
    return {
        "seconds": [after[0] for _, after in measured],
        "computed": [after[1] - before[1] for before, after in measured],
        "up": (measured[-1][1][2] - measured[0][0][2]) / len(measured),
        "down": (measured[-1][1][3] - measured[0][0][3]) / len(measured),
    }


def main() -> None:
    torch.set_num_threads(1)
    logs.configure("error")
    kind, name, side, batch, steps, limit, *rest = sys.argv[1:]
    before = resident_bytes(os.getpid())
    limit_memory(int(limit))
    size = (int(side), int(batch), int(steps))
    try:
        if kind == "whole":
            found = train_whole(name, *size)
        else:
            job, broker, state = rest
            with new_runner() as runner:
                found = runner.run(train_split(*size, job, broker, state))
    except (MemoryError, SplitEasyError) as error:
        found = {"failed": f"{error}" or "no memory"}
    except RuntimeError as error:
        if not finds_no_memory(error):
            raise
        found = {"failed": "no memory"}
    answer({**found, "grown": peak_bytes(os.getpid()) - before})


if __name__ == "__main__":
    main()
