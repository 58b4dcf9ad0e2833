"""A worker on the in-process broker, and a device that says whatever a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler, AssemblerLimits
from broker.protocol.envelope import decode
from broker.protocol.frames import CHUNK_BYTES
from broker.transport.base import Subscription
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.sender import send_message
from broker.transport.topology import (
    DEAD,
    DEAD_BYTES,
    DEFAULT_SHARDS,
    REPLY_TO,
    reply_queue,
    shard_of,
    uplink_key,
)
from server_worker.admission.quotas import DeviceQuota
from server_worker.config import WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob
from server_worker.worker import Worker
from spliteasy.runtime.torch_thread import TorchThread
from tests.simulation import toy

JOB = toy.Variant()
SESSION = "toy.phone-1"
ATTEMPT = m.AttemptRef(number=1, nonce="a" * 16)


@dataclass
class Device:
    """Sends requests as a device would, and reads the replies."""

    transport: MemoryTransport
    subscription: Subscription
    queue: str
    name: str
    assembler: Assembler = field(default_factory=Assembler)

    async def send(
        self,
        request: m.Request,
        *,
        routing_key: str | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        skip: m.Ranges = (),
    ) -> None:
        shard = None if isinstance(request, m.GetJob) else shard_of(request.session, DEFAULT_SHARDS)
        await send_message(
            self.transport,
            routing_key or uplink_key(self.name, shard),
            request,
            message_id=request.request,
            headers={REPLY_TO: self.queue},
            chunk_bytes=chunk_bytes,
            skip=skip,
        )

    async def reply(self) -> m.AnyMessage:
        async for delivery in self.subscription:
            await self.subscription.ack(delivery)
            outcome = self.assembler.add("workers", delivery.body)
            if isinstance(outcome, Assembled):
                return decode(outcome.body)
        raise AssertionError("the reply queue ended")

    async def ask(self, request: m.Request) -> m.AnyMessage:
        await self.send(request)
        return await self.reply()

    async def open(self, variant: toy.Variant = JOB) -> m.AnyMessage:
        digest = toy.job(variant).digest
        return await self.ask(m.Open(session=SESSION, attempt=ATTEMPT, digest=digest, held=(0,)))


@dataclass
class Server:
    broker: MemoryBroker
    store: SqliteStore
    worker: Worker

    @asynccontextmanager
    async def device(self, name: str = "phone-1") -> AsyncIterator[Device]:
        transport = self.broker.connect(name)
        queue = reply_queue(name, m.new_nonce())
        await transport.declare(queue)
        subscription = await transport.subscribe(queue.name, prefetch=10)
        try:
            yield Device(transport, subscription, queue.name, name)
        finally:
            await transport.close()

    async def dead_letter(self) -> str:
        """The reason of the next dead letter."""
        transport = self.broker.connect("operator")
        subscription = await transport.subscribe(DEAD, prefetch=1)
        try:
            async for delivery in subscription:
                await subscription.ack(delivery)
                return delivery.headers["reason"]
        finally:
            await transport.close()
        raise AssertionError("the dead queue ended")


@pytest.fixture
def quota() -> DeviceQuota:
    """The quota of each device; a test that wants another one overrides this."""
    return DeviceQuota()


@pytest.fixture
def variant() -> toy.Variant:
    """The variant of the toy job; a test that wants another one overrides this."""
    return JOB


@pytest.fixture
def waiting_bytes() -> int:
    """The bytes of all sessions that wait; a test that wants less overrides this."""
    return 1 << 30


@pytest.fixture
def uploads() -> AssemblerLimits:
    """The limits of all devices' uploads; a test that wants less overrides this."""
    return AssemblerLimits()


@pytest.fixture
def dead_bytes() -> int:
    """The bytes of dead letters; a test that wants fewer overrides this."""
    return DEAD_BYTES


@pytest.fixture
async def server(
    quota: DeviceQuota, variant: toy.Variant, waiting_bytes: int, uploads: AssemblerLimits, dead_bytes: int
) -> AsyncIterator[Server]:
    """A worker that serves the toy job."""
    broker = MemoryBroker()
    store = SqliteStore(None, inline=True)
    job = toy.job(variant)
    await store.put_job(StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts))
    compute = TorchThread()

    async def connect() -> MemoryTransport:
        return broker.connect("worker")

    config = WorkerConfig(
        name="worker", quota=quota, waiting_bytes=waiting_bytes, uploads=uploads, dead_bytes=dead_bytes
    )
    worker = Worker(config, connect=connect, store=store, engine=LocalEngine(compute))
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    await worker.connected.wait()
    try:
        async with asyncio.timeout(60):
            yield Server(broker, store, worker)
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await task
        compute.close()
        await store.close()
