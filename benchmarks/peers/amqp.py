"""Request and reply over RabbitMQ as anybody would write it first with aiormq: a message a tensor, whole,
into a queue and out of one; nothing durable, nothing confirmed twice, nothing split.
"""

from __future__ import annotations

import asyncio

import aiormq
import numpy as np
import torch
from aiormq.abc import DeliveredMessage
from torch import Tensor

from benchmarks.harness.workloads import Workload
from benchmarks.peers.exchange import Body, Kind

_QUEUE = "naive.requests"


def serve(workload: Workload, address: str) -> None:
    asyncio.run(_serve(workload, address))


async def _serve(workload: Workload, address: str) -> None:
    a, b = workload.sizes()
    shapes = {"forward": a, "backward": b}
    body = Body(workload)
    connection = await aiormq.connect(address)
    channel = await connection.channel()

    async def on_message(message: DeliveredMessage) -> None:
        properties = message.header.properties
        kind: Kind = "forward" if properties.message_type == "forward" else "backward"
        reply = body(kind, _tensor(message.body, shapes[kind]))
        await channel.basic_publish(
            reply.contiguous().numpy().tobytes(),
            routing_key=properties.reply_to or "",
            properties=aiormq.spec.Basic.Properties(correlation_id=properties.correlation_id),
        )
        await channel.basic_ack(message.delivery_tag or 0)

    await channel.queue_declare(_QUEUE, auto_delete=True)
    await channel.basic_consume(_QUEUE, on_message)
    await connection.closing


class Exchange:
    def __init__(self, workload: Workload, address: str) -> None:
        a, b = workload.sizes()
        self._reply_shape: dict[Kind, tuple[int, ...]] = {"forward": b, "backward": a}
        # A loop of its own, without `asyncio.Runner`: where Ctrl-C works, that one spells out each call's
        # whole result, 33 MB of them half a second, when it gives the signal's handler back.
        self._loop = asyncio.new_event_loop()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._count = 0
        self._loop.run_until_complete(self._begin(address))

    async def _begin(self, address: str) -> None:
        connection = await aiormq.connect(address)
        self._connection = connection
        self._channel = await connection.channel()
        await self._channel.queue_declare(_QUEUE, auto_delete=True)
        declared = await self._channel.queue_declare(exclusive=True)
        self._replies = declared.queue or ""
        await self._channel.basic_consume(self._replies, self._on_reply, no_ack=True)

    async def _on_reply(self, message: DeliveredMessage) -> None:
        self._waiting.pop(message.header.properties.correlation_id or "").set_result(message.body)

    def __call__(self, kind: Kind, tensor: Tensor) -> Tensor:
        body = tensor.contiguous().numpy().tobytes()
        return _tensor(self._loop.run_until_complete(self._call(kind, body)), self._reply_shape[kind])

    async def _call(self, kind: Kind, body: bytes) -> bytes:
        self._count += 1
        identity = str(self._count)
        reply = self._waiting[identity] = asyncio.get_running_loop().create_future()
        await self._channel.basic_publish(
            body,
            routing_key=_QUEUE,
            properties=aiormq.spec.Basic.Properties(
                correlation_id=identity, reply_to=self._replies, message_type=kind
            ),
        )
        return await reply


def _tensor(body: bytes, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(body), np.float32)).view(shape)
