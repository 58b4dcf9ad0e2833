"""A device is told its shard, and the number of shards is the stack's."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.topology import DEFAULT_SHARDS, shard_of, uplink_key
from server_worker import job_cache
from server_worker.config import WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.placement.shards import settle_shards
from server_worker.store import SqliteStore
from server_worker.worker import Worker
from spliteasy.errors import UserError
from tests.device.lives import assert_same_bits, body_of, live, serving
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.faults import CALM
from tests.simulation.parts import VirtualCompute
from tests.simulation.world import World
from tests.worker.conftest import ATTEMPT, JOB, SESSION, Server

SHARD = shard_of(SESSION, DEFAULT_SHARDS)


async def test_the_job_and_the_opening_tell_the_shard(server: Server) -> None:
    async with server.device() as device:
        whole = await device.ask(m.GetJob(session=SESSION))
        bare = await device.ask(m.GetJob(session=SESSION, digest=toy.job(JOB).digest, without_parts=True))
        for told in (whole, bare):
            assert isinstance(told, m.Job)
            assert told.shard == SHARD
        assert whole.values
        assert bare.values == bare.parts == ()  # type: ignore[union-attr]
        opened = await device.open()
        assert isinstance(opened, m.Opened)
        assert opened.shard == SHARD


async def test_the_shard_alone_is_told_as_often_as_it_is_asked_for(server: Server) -> None:
    """A job's parts are told ten times at once; a device that restarts again and again has them."""
    async with server.device() as device:
        for _ in range(30):
            told = await device.ask(m.GetJob(session=SESSION, without_parts=True))
            assert isinstance(told, m.Job)


@pytest.mark.parametrize("by", [(SHARD + 1) % DEFAULT_SHARDS, None])
async def test_what_comes_by_another_shard_is_sent_on(server: Server, by: int | None) -> None:
    opening = m.Open(session=SESSION, attempt=ATTEMPT, digest=toy.job(JOB).digest, held=(0,))
    async with server.device() as device:
        await device.send(opening, routing_key=uplink_key("phone-1", by))
        answer = await device.reply()
        assert isinstance(answer, m.Reopen)
        assert (answer.answers, answer.shard) == (opening.request, SHARD)
        assert await server.store.session(SESSION) is None, "it was not opened"
        assert isinstance(await device.ask(opening), m.Opened)


async def test_a_stack_keeps_its_number_of_shards() -> None:
    store = SqliteStore(None, inline=True)
    assert await settle_shards(store, 64) == 64
    assert await settle_shards(store, None) == 64
    assert await settle_shards(store, 64) == 64
    with pytest.raises(UserError, match="64 shards") as caught:
        await settle_shards(store, 16)
    assert "SHARDS=64" in (caught.value.hint or "")
    await store.close()
    new = SqliteStore(None, inline=True)
    assert await settle_shards(new, None) == DEFAULT_SHARDS
    await new.close()


async def test_a_worker_that_counts_shards_otherwise_does_not_serve() -> None:
    store, broker = SqliteStore(None, inline=True), MemoryBroker()
    await store.shards(64)

    async def connect() -> MemoryTransport:
        return broker.connect("worker")

    engine = LocalEngine(VirtualCompute(random.Random(0)))
    worker = Worker(WorkerConfig(name="worker", shards=16), connect=connect, store=store, engine=engine)
    with pytest.raises(UserError, match="64 shards"):
        await worker.run(asyncio.Event())
    await store.close()


@pytest.mark.parametrize("shards", [1, 120])
def test_a_device_trains_whatever_the_number_of_shards(shards: int) -> None:
    world = World(seed=1, variant=toy.Variant(epochs=2), devices=("phone-1",), rates=CALM, shards=shards)
    assert run_virtually(world.run()).violations == []


def test_a_device_that_was_told_another_shard_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is where the stack was made anew, with another number, while the device went on."""

    def elsewhere(session: str, shards: int) -> int:
        return (shard_of(session, shards) + 1) % shards

    monkeypatch.setattr(job_cache, "shard_of", elsewhere)

    async def train() -> None:
        broker, job = MemoryBroker(), toy.job(JOB)
        async with serving(broker, job) as store:
            agent = await live(broker, job, tmp_path, asyncio.Event())
            assert agent.link.shard == SHARD
            assert_same_bits(agent, await body_of(store, job), job)

    run_virtually(train())
