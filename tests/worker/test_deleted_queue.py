"""An operator deletes a queue just when a worker is handing its shard over."""

from __future__ import annotations

import asyncio

from broker.protocol import messages as m
from broker.transport.topology import DEFAULT_SHARDS, shard_of, shard_queue
from tests.worker.conftest import SESSION, Server


async def test_the_worker_declares_it_anew_and_serves_on(server: Server) -> None:
    queue = shard_queue(shard_of(SESSION, DEFAULT_SHARDS)).name
    operator = server.broker.connect("operator")
    server.worker.connected.clear()
    await server.worker.queues.subscriptions[queue].cancel()
    await operator.delete(queue)
    async with asyncio.timeout(20):
        await server.worker.connected.wait()
        async with server.device() as device:
            assert isinstance(await device.open(), m.Opened)
