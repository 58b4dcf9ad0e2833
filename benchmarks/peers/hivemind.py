"""hivemind 1.1 (extra `peers`): the body is an expert on its server, called over its own network.

Its server computes the forward again in each backward (so there is more to compute), and nothing is tuned.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torch.nn import functional as F

from benchmarks.harness.workloads import Workload

EXPERT = "body.0"
PATIENCE_S = 60.0


def serve(workload: Workload, address: str) -> None:
    from hivemind import DHT
    from hivemind.moe.server import ModuleBackend, Server
    from hivemind.utils.tensor_descr import BatchTensorDescriptor

    dht = DHT(start=True, host_maddrs=[f"/ip4/127.0.0.1/tcp/{address}"])  # it forks: before torch computes
    a, b = workload.sizes()
    body = workload.parts(workload.model())[1]
    backend = ModuleBackend(
        EXPERT,
        body,
        optimizer=workload.optimizer(body.parameters()),
        args_schema=(BatchTensorDescriptor(*a[1:]),),
        outputs_schema=BatchTensorDescriptor(*b[1:]),
        max_batch_size=workload.batch,
    )
    server = Server(dht, {EXPERT: backend}, num_connection_handlers=1)
    server.run_in_background(await_ready=True)
    card = _card(address)
    card.with_suffix(".new").write_text("\n".join(map(str, dht.get_visible_maddrs())))
    card.with_suffix(".new").replace(card)
    server.join()


def stepper(workload: Workload, address: str) -> Callable[[], object]:
    """Connect, and return what takes one step."""
    from hivemind import DHT
    from hivemind.moe.server.dht_handler import get_experts

    card, deadline = _card(address), time.monotonic() + PATIENCE_S
    while not card.exists():
        if time.monotonic() > deadline:
            raise TimeoutError("hivemind's server didn't start")
        time.sleep(0.1)
    peers = card.read_text().split()
    card.unlink()
    dht = DHT(start=True, initial_peers=peers, host_maddrs=["/ip4/127.0.0.1/tcp/0"])
    while (body := get_experts(dht, [EXPERT])[0]) is None:
        if time.monotonic() > deadline:
            raise TimeoutError("hivemind's server isn't found")
        time.sleep(0.1)
    head, _, tail = workload.parts(workload.model())
    optimizer = workload.optimizer(iter([*head.parameters(), *tail.parameters()]))
    batches = workload.batches()

    def step() -> None:
        images, labels = next(batches)
        F.cross_entropy(tail(body(head(images))), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _card(address: str) -> Path:
    """Return the file in which the server leaves its address, which has a key in it."""
    return Path(tempfile.gettempdir()) / f"spliteasy-bench-hivemind-{address}"
