"""A broker in this process where a worker serves one job, in real time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.transport.in_process import MemoryBroker, MemoryTransport
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob
from server_worker.worker import Worker
from spliteasy.runtime.torch_thread import TorchThread
from tests.simulation import toy


def toy_job(variant: toy.Variant | None = None) -> StoredJob:
    """As it is without a signature."""
    job = toy.job(variant or toy.Variant())
    return StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts)


@asynccontextmanager
async def served(job: StoredJob) -> AsyncIterator[tuple[MemoryBroker, SqliteStore]]:
    """The broker, and the worker's store."""
    broker, store, compute = MemoryBroker(), SqliteStore(None, inline=True), TorchThread()
    await store.put_job(job)

    async def connect() -> MemoryTransport:
        return broker.connect("worker")

    config = WorkerConfig(name="worker", trust=Trust.ENROLLED)
    worker = Worker(config, connect=connect, store=store, engine=LocalEngine(compute))
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
