"""Broker, store and workers within this process: what `train`, `parity` and `predict` can run on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from broker import Transport
from broker.transport.in_process import MemoryBroker
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.placement.shards import settle_shards
from server_worker.store import Store
from server_worker.worker import Worker
from spliteasy.runtime.torch_thread import TorchThread

ConnectAs = Callable[[str], Awaitable[Transport]]
"""Connects as the principal named."""


@asynccontextmanager
async def workers_running(
    count: int, store: Store, connect: ConnectAs, *, trust: Trust
) -> AsyncIterator[None]:
    """`count` workers of this process serve while it is entered; they drain at the end.

    `connect` is called with a worker's name. What ends a worker (LinkRefused, a bug) cancels the body of
    the `async with`, and is raised.
    """
    stop = asyncio.Event()
    computes = [TorchThread(f"worker-{n + 1}") for n in range(count)]
    try:
        shards = await settle_shards(store, None)
        async with asyncio.TaskGroup() as group:
            for number, compute in enumerate(computes, start=1):
                config = WorkerConfig(name=f"worker-{number}", trust=trust, shards=shards)
                worker = Worker(
                    config, connect=partial(connect, config.name), store=store, engine=LocalEngine(compute)
                )
                group.create_task(worker.run(stop))
                await worker.connected.wait()
            try:
                yield
            finally:
                stop.set()
    finally:
        for compute in computes:
            compute.close()


def async_connect(broker: MemoryBroker) -> ConnectAs:
    """The in-process broker's `connect`, as a coroutine function of the principal."""

    async def connect(principal: str) -> Transport:
        return broker.connect(principal)

    return connect
