"""Lives of an agent beside a worker, under a virtual clock, until it is killed or has finished."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.replica.direct_body import DirectBody
from server_worker.store import SqliteStore, StoredJob
from server_worker.worker import Worker
from spliteasy.job import Job
from spliteasy.observability.traces import Tracer
from tests.drawn import SECRET
from tests.simulation import toy
from tests.simulation.parts import VirtualCompute


@asynccontextmanager
async def serving(broker: MemoryBroker, job: Job) -> AsyncIterator[SqliteStore]:
    loop = asyncio.get_running_loop()
    store = SqliteStore(None, inline=True, clock=loop.time)
    await store.put_job(StoredJob(name=job.name, digest=job.digest, manifest=job.manifest, parts=job.parts))

    async def connect() -> MemoryTransport:
        return broker.connect("worker")

    worker = Worker(
        WorkerConfig(name="worker", trust=Trust.ENROLLED, retention_check_s=1e9),
        connect=connect,
        store=store,
        engine=LocalEngine(VirtualCompute(random.Random(1))),
        clock=loop.time,
        rng=random.Random(1),
    )
    stop = asyncio.Event()
    task = asyncio.create_task(worker.run(stop))
    await worker.connected.wait()
    try:
        yield store
    finally:
        stop.set()
        await task
        await store.close()


async def live(
    broker: MemoryBroker,
    job: Job,
    state: Path,
    until: asyncio.Event,
    observe: Callable[[Agent, Observation], object] = lambda *_: None,
    tracer: Tracer | None = None,
    **config: Any,
) -> Agent:
    """One life of the agent: to its end, or until it is killed."""
    loop = asyncio.get_running_loop()
    transports: list[MemoryTransport] = []

    async def connect() -> MemoryTransport:
        transports.append(broker.connect("phone-1"))
        return transports[-1]

    agent = Agent(
        AgentConfig(job=job.name, device="phone-1", data=toy.DATA, secret=SECRET, state=state, **config),
        connect=connect,
        compute=VirtualCompute(random.Random(2)),
        observe=lambda observation: observe(agent, observation),
        rng=random.Random(2),
        clock=loop.time,
        tracer=tracer,
    )
    running, killed = asyncio.create_task(agent.run(asyncio.Event())), asyncio.create_task(until.wait())
    await asyncio.wait({running, killed}, return_when=asyncio.FIRST_COMPLETED)
    for task in (running, killed):
        task.cancel()
    for transport in transports:
        broker.drop(transport)
    await asyncio.gather(running, killed, return_exceptions=True)
    if not until.is_set():
        assert running.result().done
    return agent


async def body_of(store: SqliteStore, job: Job) -> toy.State:
    """The body as a worker would load it now."""
    session = f"{job.name}.phone-1"
    meta = await store.session(session)
    assert meta is not None
    body = DirectBody(job, session)
    body.restore(await store.read_snapshot(session, meta.snapshots[-1]), meta.snapshots[-1])
    async for entry in store.read_log(session, after=meta.snapshots[-1], upto=meta.committed):
        body.replay(entry)
    return body.snapshot()


def assert_same_bits(agent: Agent, body: toy.State, job: Job) -> None:
    """Compare with the same training without a wire."""
    own, expected_body, _ = toy.train_alone(job, toy.DATA, "phone-1")
    assert agent.trainer is not None
    for expected, found in ((own, agent.trainer.state()), (expected_body, body)):
        assert expected.keys() == found.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
