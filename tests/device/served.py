"""A broker where a worker serves one job in real time: in this process, or RabbitMQ with Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from broker import Transport, connect
from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.link.link import Connect
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, Store, StoredJob, open_store
from server_worker.worker import Worker
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.support.embedded import workers_running
from tests.simulation import toy


def toy_job(variant: toy.Variant | None = None) -> StoredJob:
    """Return the toy job as it is without a signature."""
    job = toy.job(variant or toy.Variant())
    return StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts)


@asynccontextmanager
async def served(
    job: StoredJob, broker: MemoryBroker | None = None
) -> AsyncIterator[tuple[MemoryBroker, SqliteStore]]:
    """The broker, and the worker's store."""
    broker = broker or MemoryBroker()
    store, compute = SqliteStore(None, inline=True), TorchThread()
    await store.put_job(job)

    async def connect_here() -> MemoryTransport:
        return broker.connect("worker")

    config = WorkerConfig(name="worker", trust=Trust.ENROLLED)
    worker = Worker(config, connect=connect_here, store=store, engine=LocalEngine(compute))
    stop = asyncio.Event()
    serving = asyncio.create_task(worker.run(stop))
    try:
        await worker.connected.wait()
        yield broker, store
    finally:
        stop.set()
        await serving
        await store.close()
        compute.close()


@asynccontextmanager
async def served_by(broker_url: str, store_url: str, job: StoredJob) -> AsyncIterator[tuple[Connect, Store]]:
    """Give a way to connect to the broker, and the worker's store."""
    store = await open_store(store_url)

    async def connect_as(principal: str) -> Transport:
        return await connect(broker_url)

    try:
        await store.put_job(job)
        async with workers_running(1, store, connect_as, trust=Trust.OPEN):
            yield partial(connect, broker_url), store
    finally:
        await store.close()
