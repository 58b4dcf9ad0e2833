"""Raw TCP: the tensor's memory goes into the socket, and from the socket into a tensor of the known shape."""

from __future__ import annotations

import socket

import torch
from torch import Tensor

from benchmarks.harness.workloads import Workload
from benchmarks.peers.exchange import Body, Kind


def serve(workload: Workload, address: str) -> None:
    a, b = workload.sizes()
    body = Body(workload)
    with socket.create_server(("127.0.0.1", int(address))) as listener:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while (tensor := _receive(connection, a)) is not None:
                _send(connection, body("forward", tensor))
                gradient = _receive(connection, b)
                if gradient is None:
                    return
                _send(connection, body("backward", gradient))


class Exchange:
    def __init__(self, workload: Workload, address: str) -> None:
        a, b = workload.sizes()
        self._reply_shape: dict[Kind, tuple[int, ...]] = {"forward": b, "backward": a}
        self._connection = socket.create_connection(("127.0.0.1", int(address)))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self, kind: Kind, tensor: Tensor) -> Tensor:
        _send(self._connection, tensor)
        reply = _receive(self._connection, self._reply_shape[kind])
        assert reply is not None
        return reply


def _send(connection: socket.socket, tensor: Tensor) -> None:
    connection.sendall(tensor.contiguous().numpy().data.cast("B"))


def _receive(connection: socket.socket, shape: tuple[int, ...]) -> Tensor | None:
    tensor = torch.empty(shape)
    view = tensor.numpy().data.cast("B")
    while view.nbytes:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return tensor
