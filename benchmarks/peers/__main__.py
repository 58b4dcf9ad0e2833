"""One process of a peer: `python -m benchmarks.peers SYSTEM serve|device WORKLOAD ADDRESS`.

A device takes laps (`benchmarks.harness.timed_runs`). SYSTEM `plain` is the whole model in one process; its
ADDRESS is into how many micro-batches it cuts a batch.
"""

from __future__ import annotations

import importlib
import sys
import time

import torch

from benchmarks.harness.timed_runs import serve_laps
from benchmarks.harness.workloads import WORKLOADS, Workload
from benchmarks.peers.exchange import Device, Exchange, Plain

PATIENCE_S = 60.0


def main() -> None:
    system, side, name, *address = sys.argv[1:]
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    if system == "plain":
        serve_laps(Plain(workload, *map(int, address)).step)
        return
    module = importlib.import_module(f"benchmarks.peers.{system}")
    if side == "serve":
        module.serve(workload, address[0])
    elif hasattr(module, "stepper"):  # it has its own way to train
        serve_laps(module.stepper(workload, address[0]))
    else:
        serve_laps(Device(workload, _reach(module.Exchange, workload, address[0])).step)


def _reach(exchange: type[Exchange], workload: Workload, address: str) -> Exchange:
    """Connect, once the server has come up."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return exchange(workload, address)  # type: ignore[call-arg]
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main()
