"""TorchSlicer 0.2 (extra `peers`): its driver on the device, and a worker each for head, body and tail.

It has no way to keep two parts in one process, so the device's side is three processes, which take turns.
Tensors go by its raw TCP or by gRPC: the address is `tcp:PORT` or `grpc:PORT`, the body's worker listens
there and at the next port. The modules travel as pickles, and its workers listen on all interfaces: not for
a network that others are in.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from benchmarks.harness.services import free_port
from benchmarks.harness.workloads import STEPS, Workload

HOST = "127.0.0.1"
QUIET = {"DEVICE": "cpu", "LOG_LEVEL": "CRITICAL", "LOG_ENABLED": "false"}
PATIENCE_S = 60.0


def serve(workload: Workload, address: str) -> None:
    transport, _, port = address.partition(":")
    os.environ.update(QUIET, TENSOR_TRANSPORT=transport)
    import torchslicer  # type: ignore[import-not-found, unused-ignore]

    torchslicer.run_worker(port=int(port), coordinator_addr=None, worker_address=f"{HOST}:{port}")


def stepper(workload: Workload, address: str) -> Callable[[], object]:
    """Start everything, and return what takes one step."""
    transport, _, port = address.partition(":")
    own = [str(free_port()), str(free_port())]
    for each in own:
        arguments = ["benchmarks.peers", "torchslicer", "serve", workload.name, f"{transport}:{each}"]
        subprocess.Popen([sys.executable, "-m", *arguments], cwd=Path(__file__).parents[2])
    os.environ.update(QUIET)
    import torchslicer

    config = torchslicer.RunConfig.create(transport=transport, device="cpu", keep_alive=False)
    config.logging.enabled = False
    config.logging.level = QUIET["LOG_LEVEL"]
    config.startup.worker_init_max_attempts = int(PATIENCE_S)
    driver = f"{HOST}:{free_port()}"
    executor = torchslicer.DistributedExecutor(
        torchslicer.StaticDiscovery([f"{HOST}:{each}" for each in (own[0], port, own[1])]),
        coordinator_addr=driver,
        coordinator_bind_addr=driver,
        run_config=config,
    )
    sliced = torchslicer.slice(
        workload.model(), n=3, executor=executor, pack=lambda model: list(workload.parts(model))
    )
    batches = _Paced(workload)
    settings = {"name": "SGD", "params": {"lr": workload.lr, "momentum": 0.9, "foreach": False}}
    loss = {"name": "CrossEntropyLoss", "params": {}}
    threading.Thread(
        target=sliced.train, args=(batches, settings, loss), kwargs={"epochs": 1}, daemon=True
    ).start()
    return batches.step


class _Paced:
    """A data loader that gives a batch when a step is asked for: its training is one endless epoch."""

    def __init__(self, workload: Workload) -> None:
        self._batches = workload.batches()
        self._wanted: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._began = False

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self._asked.put(None)  # what came before is done
            self._wanted.get()
            yield next(self._batches)

    def step(self) -> None:
        """Let it take one batch; returns when it asks for the next."""
        if not self._began:
            self._asked.get(timeout=PATIENCE_S)  # the workers have started
            self._began = True
        self._wanted.put(None)
        self._asked.get(timeout=PATIENCE_S)
