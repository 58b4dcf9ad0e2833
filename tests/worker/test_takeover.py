"""What makes a takeover fast: the program is there before, and no shard goes to a worker that is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import torch

from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker, MemoryTransport
from server_worker import metrics
from server_worker.config import WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.store import SqliteStore, StoredJob, WorkerInfo
from server_worker.worker import Worker
from tests.recorded import Recorded
from tests.simulation import toy
from tests.simulation.clock import run_virtually
from tests.simulation.parts import VirtualCompute
from tests.worker.conftest import ATTEMPT, JOB, Server
from tests.worker.test_metrics import one_step
from tests.worker.test_refusals import forward as a_forward

DEAD = WorkerInfo(
    worker="dead", started_at=0.0, sessions=0, shards=(), steps=0, host="h", pid=1, state="serving"
)
BEATS_S = 3.5
"""Three heartbeats and a half."""


@dataclass
class Running:
    """A worker that can be killed: its connection goes, its heartbeat in the store stays for a while."""

    worker: Worker
    task: asyncio.Task[None]
    transports: list[MemoryTransport]
    broker: MemoryBroker

    async def kill(self) -> None:
        for transport in self.transports:
            self.broker.drop(transport)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@dataclass
class Scene:
    """A broker and a store under virtual time, and workers on them."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)
    meter: Recorded = field(default_factory=Recorded)

    def __post_init__(self) -> None:
        self.clock = asyncio.get_running_loop().time
        self.store = SqliteStore(None, inline=True, clock=self.clock)

    async def submit(self) -> None:
        job = toy.job(JOB)
        await self.store.put_job(
            StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts)
        )

    @asynccontextmanager
    async def worker(self, name: str, *, jobs: int = 32) -> AsyncIterator[Running]:
        transports: list[MemoryTransport] = []

        async def connect() -> MemoryTransport:
            transports.append(self.broker.connect(name))
            return transports[-1]

        worker = Worker(
            WorkerConfig(name=name, jobs=jobs),
            connect=connect,
            store=metrics.metered_store(self.store, self.meter, self.clock),
            engine=LocalEngine(VirtualCompute(random.Random(1))),
            clock=self.clock,
        )
        running = Running(worker, asyncio.create_task(worker.run(asyncio.Event())), transports, self.broker)
        await worker.connected.wait()
        try:
            yield running
        finally:
            await running.kill()

    def programs_loaded(self) -> float:
        """Return how often a worker asked the store for a program."""
        return self.meter.get(metrics.STORE_CALLS, "get_job", "Done")


def test_a_survivor_has_the_program_before_it_takes_over() -> None:
    async def play() -> None:
        scene = Scene()
        await scene.submit()
        async with scene.worker("first") as owner, scene.worker("second") as survivor:
            await asyncio.sleep(BEATS_S)
            assert len(survivor.worker.jobs) == 0, "nobody trains yet"
            server = Server(scene.broker, scene.store, owner.worker)
            await one_step(server)
            await asyncio.sleep(BEATS_S)
            assert owner.worker.steps == 1
            assert survivor.worker.holdings().sessions == 0
            assert len(survivor.worker.jobs) == 1
            assert scene.programs_loaded() == 2
            await owner.kill()
            async with server.device() as device:
                answer = await device.ask(a_forward(2))
            assert isinstance(answer, m.Forwarded)
            assert survivor.worker.holdings().sessions == 1
            assert scene.programs_loaded() == 2

    run_virtually(play())


def test_a_worker_that_was_cut_off_doubts_its_memory() -> None:
    """Another one owned the session meanwhile, at the same step: a commit would be refused without a word."""

    async def play() -> None:
        scene = Scene()
        await scene.submit()
        async with scene.worker("first") as first, scene.worker("second") as second:
            server = Server(scene.broker, scene.store, first.worker)
            await one_step(server)
            async with server.device() as device:
                forward = a_forward(2)
                forwarded = await device.ask(forward)
                assert isinstance(forwarded, m.Forwarded)
                await asyncio.sleep(1)  # the request is acknowledged after its reply
                scene.broker.drop(first.transports[-1])
                asked = await device.ask(an_ask(forward))
                assert isinstance(asked, m.Missing)
                assert asked.fence > forwarded.fence
                await first.worker.connected.wait()
                await second.kill()
                answer = await device.ask(a_backward(forward))
            assert isinstance(answer, m.Missing)
            assert answer.fence > asked.fence

    run_virtually(asyncio.wait_for(play(), 60))


def an_ask(about: m.Forward) -> m.Ask:
    return m.Ask(
        session=about.session,
        attempt=ATTEMPT,
        step=about.step,
        about=about.request,
        about_kind="FORWARD",
        forward=about.request,
    )


def a_backward(of: m.Forward) -> m.Backward:
    return m.Backward(
        session=of.session, attempt=ATTEMPT, step=of.step, forward=of.request, values=(torch.ones(4, 5),)
    )


def test_what_is_loaded_ahead_takes_nobodys_place() -> None:
    async def play() -> None:
        scene = Scene()
        await scene.submit()
        async with scene.worker("first") as owner, scene.worker("second", jobs=0) as full:
            await one_step(Server(scene.broker, scene.store, owner.worker))
            await asyncio.sleep(BEATS_S)
            assert len(owner.worker.jobs) == 1
            assert len(full.worker.jobs) == 0

    run_virtually(play())


def test_a_worker_that_has_just_died_gets_no_shard() -> None:
    """Its heartbeat says for some seconds yet that it has nothing to do."""

    async def play() -> None:
        scene = Scene()
        await scene.submit()
        await scene.store.heartbeat(DEAD, ttl_s=60)
        async with scene.worker("first") as living:
            server = Server(scene.broker, scene.store, living.worker)
            digest = toy.job(JOB).digest
            for device_id in ("phone-1", "phone-2"):
                async with server.device(device_id) as device:
                    session = f"toy.{device_id}"
                    opened = await device.ask(
                        m.Open(session=session, attempt=ATTEMPT, digest=digest, held=(0,))
                    )
                    assert isinstance(opened, m.Opened)
            subscriptions = dict(living.worker.queues.subscriptions)
            await asyncio.sleep(BEATS_S)
            workers = {each.worker: each.sessions for each in await scene.store.workers()}
            assert workers == {"first": 2, "dead": 0}
            assert living.worker.queues.subscriptions == subscriptions

    run_virtually(play())
