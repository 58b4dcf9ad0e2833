"""torch.distributed.rpc over TCP."""

from __future__ import annotations

import os

import torch.distributed.rpc as rpc
from torch import Tensor

from benchmarks.harness.workloads import Workload
from benchmarks.peers.exchange import Body, Kind

_bodies: list[Body] = []


def _handle(kind: Kind, tensor: Tensor) -> Tensor:
    return _bodies[0](kind, tensor)


def _join(name: str, rank: int, address: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    options = rpc.TensorPipeRpcBackendOptions(
        init_method=f"tcp://127.0.0.1:{address}", _transports=["uv"], _channels=["basic"]
    )
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)


def serve(workload: Workload, address: str) -> None:
    _bodies.append(Body(workload))
    _join("server", 0, address)
    rpc.shutdown()  # returns when the device does the same


class Exchange:
    def __init__(self, workload: Workload, address: str) -> None:
        _join("device", 1, address)

    def __call__(self, kind: Kind, tensor: Tensor) -> Tensor:
        reply: Tensor = rpc.rpc_sync("server", _handle, (kind, tensor))
        return reply
