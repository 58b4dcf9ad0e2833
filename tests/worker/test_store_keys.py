"""A worker without the store's key serves no sealed session, and leaves it to one that has the key."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent
from device_agent.observations import Observation, StepTaken
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, Store, StoredJob, StoreKeys
from server_worker.store.sealed import sealed
from server_worker.worker import Worker
from tests.device.lives import assert_same_bits, body_of, live
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.parts import VirtualCompute
from tests.store.steps import NEW, OLD

NONE, OTHER, RIGHT = (
    StoreKeys((), open_too=True),
    StoreKeys((OLD,), open_too=False),
    StoreKeys((NEW,), open_too=False),
)


@asynccontextmanager
async def serving(broker: MemoryBroker, store: Store, name: str) -> AsyncIterator[None]:
    """A worker of that name on that store."""
    loop = asyncio.get_running_loop()

    async def connect() -> MemoryTransport:
        return broker.connect(name)

    worker = Worker(
        WorkerConfig(name=name, trust=Trust.ENROLLED, retention_check_s=1e9),
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
        yield
    finally:
        stop.set()
        await task


async def _train(state: Path, keys: StoreKeys) -> None:
    loop = asyncio.get_running_loop()
    broker, raw, job = MemoryBroker(), SqliteStore(None, inline=True, clock=loop.time), toy.job(toy.Variant())
    await raw.put_job(StoredJob(name=job.name, digest=job.digest, manifest=job.manifest, parts=job.parts))
    right = sealed(raw, RIGHT)
    killed = asyncio.Event()
    steps: list[int] = []
    told: list[str] = []

    def observe(_: Agent, observation: Observation) -> None:
        told.append(str(observation))
        if isinstance(observation, StepTaken):
            steps.append(observation.step)
            if len(steps) == 5:
                killed.set()

    async with serving(broker, right, "right"):
        await live(broker, job, state, killed, observe)
    before = list(steps)
    waits = asyncio.Event()
    async with serving(broker, sealed(raw, keys), "keyless"):
        loop.call_later(20, waits.set)
        await live(broker, job, state, waits, observe)
        assert steps == before, "a step was taken without the key"
        assert any("waiting for a worker that can open it" in line for line in told)
        async with serving(broker, right, "right"):
            agent = await live(broker, job, state, asyncio.Event(), observe)
    assert_same_bits(agent, await body_of(right, job), job)
    await raw.close()


@pytest.mark.parametrize("keys", [NONE, OTHER], ids=["no key", "another key"])
def test_a_worker_without_the_key_waits_for_one_that_has_it(tmp_path: Path, keys: StoreKeys) -> None:
    run_virtually(_train(tmp_path, keys))
