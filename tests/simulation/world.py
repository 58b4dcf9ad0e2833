"""A simulated world: two workers, a broker, a store and some devices, until every device has finished."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch

from broker.protocol.frames import CHUNK_BYTES
from broker.transport import topology
from broker.transport.base import Transport
from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.observations import Observation, RoundEnded
from device_agent.policy.run_conditions import Gate
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.replica.direct_body import DirectBody
from server_worker.store import SqliteStore, Store, StoredJob
from server_worker.store.blobs.blobbed import BlobbedStore
from server_worker.store.blobs.folder import FolderBlobs
from server_worker.worker import Worker
from spliteasy.errors import StateError
from spliteasy.fleet.record import RoundRecord
from tests.drawn import SECRET
from tests.simulation import fleet, shared_fleet, toy
from tests.simulation.faults import Faults, Rates, drawn_rates
from tests.simulation.parts import FaultyStore, Invariants, VirtualCompute
from tests.simulation.releases import Releases, watched
from tests.simulation.replies import Replies, heard

LOSS_WINDOW_S = 2.0
GRACE_S = 20.0
"""Blobs that no record names are kept for so long: less than a zombie stands still."""
LARGE_BYTES = 100
FAULTY_S = 60.0
"""Faults happen during so much virtual time; then the training must end by itself."""

DEADLINE_S = 3600.0


@dataclass(slots=True)
class Outcome:
    """The result of one seed."""

    seed: int
    violations: list[str]
    faults: Faults
    virtual_s: float


@dataclass(kw_only=True)
class World:
    """One run of a variant of the `toy` job; everything random comes from `seed`."""

    seed: int
    variant: toy.Variant
    devices: tuple[str, ...] = ("phone-1", "phone-2")
    workers: int = 2
    shards: int = topology.DEFAULT_SHARDS
    queues: topology.QueueType = topology.QueueType.QUORUM
    rates: Rates | None = None
    reply_timeout_s: float = 10.0
    violations: list[str] = field(default_factory=list)
    steps_by_worker: Counter[int] = field(default_factory=Counter)
    late_s: Mapping[int, float] = field(default_factory=dict)
    """The start of each worker that is not there from the beginning."""
    alive: dict[int, Worker] = field(default_factory=dict)
    blobs: bool | None = None
    """Whether tensors of snapshots and parts of the job lie beside the store; None: at each third seed."""

    async def run(self) -> Outcome:
        loop = asyncio.get_running_loop()
        rng = random.Random(self.seed)
        rates = self.rates or drawn_rates(rng)
        if self.variant.auto:
            # Which codecs a step had is in the state folder: with an older one, and a store that goes back
            # to before the takeover, both sides hold the same step of two different trainings.
            rates = replace(rates, checkpoints_lost=0.0, state_lost=0.0)
        self._faults = Faults(rng, rates)
        self._rng = rng
        self._lost: set[str] = set()
        self._chunk_bytes = rng.choice((CHUNK_BYTES, 400))
        self._cuts = (self._chunk_bytes, 400, 250) if rng.random() < 0.5 else (self._chunk_bytes,)
        """The chunk sizes that an agent may take at each of its starts: links change."""
        self._rows_bytes = random.Random(f"rows {self.seed}").choice((0, 4000, 1 << 20, 1 << 20))
        """The room that workers have for rows: none, for half of a device's, or for all."""
        self._broker = MemoryBroker(policy=self._faults, delivery_limit=10**6)
        self._store = SqliteStore(None, inline=True, clock=loop.time, loss_window_s=LOSS_WINDOW_S)
        job = toy.job(self.variant)
        expected = {
            (f"toy.{device}", step): digest
            for device in (() if self.variant.auto or self.variant.fleet else self.devices)
            for step, digest in toy.undisturbed(device, self.variant)[2].items()
        }
        self._invariants = Invariants(expected)
        self._taken: list[fleet.Taken] = []
        """Means that devices went on from, in order."""
        folder = Path(tempfile.mkdtemp(prefix="sim-", dir=_memory_folder()))
        aside = self.seed % 3 == 0 if self.blobs is None else self.blobs
        self._blobs = FolderBlobs(folder / "blobs") if aside else None
        await self._with_blobs(self._store).put_job(
            StoredJob(name=job.spec.name, digest=job.digest, manifest=job.manifest, parts=job.parts)
        )
        if job.spec.privacy.dp is not None:
            self._invariants.releases = {
                f"toy.{device}": Releases(folder / device) for device in self.devices
            }
        if self.variant.fleet:
            self._invariants.replies = Replies(loop.time, LOSS_WINDOW_S)
        try:
            with watched(self._invariants.releases), heard(self._invariants.replies):
                async with asyncio.timeout(DEADLINE_S):
                    await self._play(folder)
        except TimeoutError:
            self.violations.append(f"not finished after {DEADLINE_S:.0f} s of virtual time")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            await self._store.close()
        found = [line for each in self._invariants.releases.values() for line in each.found]
        found += self._invariants.replies.found if self._invariants.replies is not None else []
        return Outcome(
            self.seed, self.violations + self._invariants.violations + found, self._faults, loop.time()
        )

    def _with_blobs(self, store: Store | FaultyStore | SqliteStore) -> Store:
        """Return the store with what is large beside it; a blob is swept long before the training's end."""
        loop = asyncio.get_running_loop()
        settings = {"large_bytes": LARGE_BYTES, "grace_s": GRACE_S, "ticks": loop.time, "inline": True}
        return cast(Store, BlobbedStore(cast(Store, store), self._blobs, **settings))  # type: ignore[arg-type]

    async def _play(self, folder: Path) -> None:
        stop = asyncio.Event()
        hosts = [asyncio.create_task(self._host_worker(n, stop)) for n in range(self.workers)]
        weather = asyncio.create_task(self._weather())
        operator = asyncio.create_task(self._operator())
        try:
            agents = [asyncio.create_task(self._host_agent(device, folder)) for device in self.devices]
            ended = dict(zip(self.devices, await asyncio.gather(*agents), strict=True))
            if self.variant.fleet:
                await self._judge_rounds(ended)
            else:
                for device, agent in ended.items():
                    await self._compare(device, agent)
        finally:
            weather.cancel()
            operator.cancel()
            stop.set()
            await asyncio.gather(weather, operator, *hosts, return_exceptions=True)

    async def _weather(self) -> None:
        """Store images to go back to, and the end of all faults."""
        rng, rates = self._rng, self._faults.rates
        images: list[tuple[float, bytes]] = []
        loop = asyncio.get_running_loop()
        next_rollback = rng.expovariate(1 / rates.rollback_s)
        while loop.time() < FAULTY_S:
            await asyncio.sleep(0.2)
            now = loop.time()
            if now < next_rollback - LOSS_WINDOW_S:
                continue  # too old by then
            images = [(t, i) for t, i in images if now - t <= LOSS_WINDOW_S] + [(now, self._store.image())]
            if now >= next_rollback:
                then, image = rng.choice(images)
                self._faults.note("store lost commits", f"went back {now - then:.1f} s")
                self._store.restore(image)
                self._invariants.rolled_back()
                images = []
                next_rollback = now + rng.expovariate(1 / rates.rollback_s)
        self._faults.active = False

    async def _operator(self) -> None:
        """Pauses sessions, and lets each go on in the end; a store that goes back may forget either."""
        rng, loop = self._rng, asyncio.get_running_loop()
        while self._faults.active:
            await asyncio.sleep(min(FAULTY_S, rng.expovariate(1 / self._faults.rates.pause_s)))
            session = f"toy.{rng.choice(self.devices)}"
            if self._faults.active and await self._store.pause(session, True):
                self._faults.note("paused", session)
                await asyncio.sleep(rng.choice((0.5, 3.0, 30.0)))
                await self._store.pause(session, False)
        await asyncio.sleep(max(0.0, FAULTY_S - loop.time()))
        for device in self.devices:
            await self._store.pause(f"toy.{device}", False)

    async def _host_worker(self, number: int, stop: asyncio.Event) -> None:
        """Keep a worker running: it dies and drains by the schedule, and starts again."""
        await asyncio.sleep(self.late_s.get(number, 0.0))
        while not stop.is_set():
            leave = asyncio.Event()
            task = asyncio.create_task(self._worker(number, leave))
            ends = asyncio.create_task(self._fate(task, leave, number))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            ends.cancel()
            task.cancel()
            stopping.cancel()
            results = await asyncio.gather(task, ends, stopping, return_exceptions=True)
            if isinstance(results[0], Exception):
                self.violations.append(f"worker {number} raised {results[0]!r}")
                return
            await asyncio.sleep(self._rng.choice((0.1, 1.0, 5.0)))

    async def _fate(self, task: asyncio.Task[None], leave: asyncio.Event, number: int) -> None:
        rates = self._faults.rates
        crash_s = self._rng.expovariate(1 / rates.worker_crash_s)
        drain_s = self._rng.expovariate(1 / rates.worker_drain_s)
        await asyncio.sleep(min(crash_s, drain_s))
        if not self._faults.active:
            return
        if crash_s < drain_s:
            self._faults.note("worker killed", f"worker {number}")
            task.cancel()
        else:
            self._faults.note("worker drained", f"worker {number}")
            leave.set()

    async def _worker(self, number: int, leave: asyncio.Event) -> None:
        task = asyncio.current_task()
        assert task is not None
        transports: list[MemoryTransport] = []

        async def connect() -> Transport:
            await asyncio.sleep(0.001)
            transports.append(self._broker.connect(f"worker-{number}"))
            return transports[-1]

        def cut() -> None:
            for transport in transports:
                self._broker.drop(transport)

        store = FaultyStore(self._store, self._faults, self._invariants, crash=task.cancel, cut=cut)
        worker = Worker(
            WorkerConfig(
                name=f"worker-{number}",
                trust=Trust.ENROLLED,
                shards=self.shards,
                queues=self.queues,
                drain_s=2.0,
                chunk_bytes=self._chunk_bytes,
                rows_bytes=self._rows_bytes,
                retention_check_s=3.0,  # by the store's clock: the calendar is decades ahead of it
            ),
            connect=connect,
            store=self._with_blobs(store),
            engine=LocalEngine(VirtualCompute(self._rng, self._faults)),
            clock=asyncio.get_running_loop().time,
            rng=self._rng,
        )
        self.alive[number] = worker
        try:
            await worker.run(leave)
        finally:
            del self.alive[number]
            self.steps_by_worker[number] += worker.steps
            cut()

    async def _host_agent(self, device: str, folder: Path) -> Agent:
        """Run the device's agent until it has finished, through crashes."""
        state, copy = folder / device, folder / f"{device}-copy"
        takeover = restart = False
        while True:
            agent, transports = self._agent(device, state, takeover=takeover, restart=restart)
            task = asyncio.create_task(agent.run(asyncio.Event()))
            takeover = restart = False
            await self._live(task, device)
            if task.done():
                result = task.exception() or task.result()
                if isinstance(result, AgentResult):
                    return agent
                takeover, restart = self._refused(device, result)
                if not (takeover or restart):
                    return agent
            else:
                self._faults.note("agent killed", device)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                for transport in transports:
                    self._broker.drop(transport)
                if self._faults.strikes(self._faults.rates.state_lost, "state folder lost", device):
                    shutil.rmtree(state, ignore_errors=True)
                    self._forget(device)
                elif copy.exists() and self._faults.strikes(
                    self._faults.rates.checkpoints_lost, "checkpoints lost", device
                ):
                    shutil.rmtree(state, ignore_errors=True)  # it was killed before it made one
                    shutil.copytree(copy, state)
                    self._forget(device)
                elif self._rng.random() < 0.5 and state.exists():
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(state, copy)
            await asyncio.sleep(self._rng.choice((0.0, 0.5, 4.0)))
            await self._may_start(device)

    async def _live(self, agent: asyncio.Task[AgentResult], device: str) -> None:
        """Wait until the device's agent has ended, or is to be killed."""
        life_s = self._rng.expovariate(1 / self._faults.rates.agent_crash_s)
        await asyncio.wait({agent}, timeout=life_s if self._faults.active else None)
        if not agent.done() and not self._faults.active:
            await asyncio.wait({agent})

    async def _may_start(self, device: str) -> None:
        """Wait until an agent of a device that was killed may be started again."""

    def _forget(self, device: str) -> None:
        """The device's folder is older than what it has done."""
        self._lost.add(device)
        if self._invariants.releases:
            self._invariants.releases[f"toy.{device}"].lost = True

    def _refused(self, device: str, error: BaseException) -> tuple[bool, bool]:
        """Return what a person would do about an agent that stopped: (take over, start over).

        Only a device whose folder went back to an older copy has a reason to stop.
        """
        self._faults.history.append(f"{device} stopped: {error}")
        if device in self._lost and isinstance(error, StateError):
            if "--takeover" in str(error):
                return True, False
            if "--restart" in str(error):
                return False, True
        self.violations.append(f"{device} stopped: {error!r}")
        return False, False

    def _agent(
        self, device: str, state: Path, *, takeover: bool, restart: bool
    ) -> tuple[Agent, list[MemoryTransport]]:
        transports: list[MemoryTransport] = []

        async def connect() -> Transport:
            await asyncio.sleep(0.001)
            transports.append(self._broker.connect(device))
            return transports[-1]

        config = AgentConfig(
            job="toy",
            device=device,
            data=self.variant.data,
            secret=SECRET,
            fleet_key=fleet.FLEET_KEY if self.variant.fleet else None,
            state=state,
            takeover=takeover,
            restart=restart,
            patience_s=DEADLINE_S,
            reply_timeout_s=self.reply_timeout_s,
            chunk_bytes=self._rng.choice(self._cuts),
        )
        loop = asyncio.get_running_loop()
        agent = Agent(
            config,
            connect=connect,
            compute=VirtualCompute(self._rng),
            observe=self._observe,
            rng=self._rng,
            clock=loop.time,
            gate=self._gate(device) if self.seed % 4 == 0 else None,
            make_chooser=lambda link, _: toy.Drawn(link, self._rng),
        )
        return agent, transports

    def _gate(self, device: str) -> Gate:
        """Return a gate that lets a device of every fourth world train only now and then."""
        rng = random.Random(f"{self.seed} {device}")

        async def condition() -> str | None:
            if not self._faults.active or rng.random() < 0.7:
                return None
            self._faults.note("device paused", device)
            return "not now"

        return Gate(condition, every_s=0.3)

    async def _compare(self, device: str, agent: Agent) -> None:
        """The equality: head, tail, body, buffers and optimizers, bit by bit."""
        if self.violations or agent.trainer is None:
            return
        if self.variant.auto:
            steps = self._invariants.codecs[f"toy.{device}"]
            codecs = (codec for step in range(1, agent.trainer.step + 1) for codec in steps[step])
            own, body = toy.as_logged(device, self.variant, codecs)
        else:
            own, body, _ = toy.undisturbed(device, self.variant)
        self._differ(f"{device}, device side", own, agent.trainer.state())
        self._differ(f"{device}, body", body, await self._restored(f"toy.{device}"))
        poisson = agent.trainer.batches.poisson
        if poisson is not None:
            self._invariants.releases[f"toy.{device}"].judge(poisson.planned)

    def _observe(self, observation: Observation) -> None:
        if isinstance(observation, RoundEnded):
            self._taken.append(fleet.Taken(observation.device, observation.round, observation.record))

    @property
    def fleet_name(self) -> str:
        """Return how the store names the fleet, where there is one."""
        return f"toy@{toy.job(self.variant).digest}"

    async def _judge_rounds(self, ended: Mapping[str, Agent]) -> Sequence[RoundRecord]:
        """The rounds are those of the plain program, and every device has the last mean that it was told.

        Returns their records.
        """
        job, averaged = toy.job(self.variant), {}
        for device, agent in ended.items():
            if self.violations or agent.trainer is None:
                return []
            body = DirectBody(job, f"toy.{device}")
            await self._replay(body)
            averaged[device] = fleet.averaged(agent.trainer, body)
        lines = await self._store.fleets.rounds(self.fleet_name)
        records = [RoundRecord.from_json(line) for line in lines]
        self._faults.history += [str(record) for record in records]
        judge = shared_fleet.judge if job.spec.fleet.shares_body else fleet.judge
        case = fleet.Case.of(self.variant, self.devices)
        self.violations += judge(case, records, self._taken, averaged, lost=self._lost)
        return records

    async def _restored(self, session: str) -> toy.State:
        """The body as a worker would load it now: the newest snapshot, and the log after it."""
        memory = DirectBody(toy.job(self.variant), session)
        await self._replay(memory)
        return memory.snapshot()

    async def _replay(self, memory: DirectBody) -> None:
        session = memory.session
        meta = await self._store.session(session)
        assert meta is not None
        snapshot = await self._with_blobs(self._store).read_snapshot(session, meta.snapshots[-1])
        memory.restore(snapshot, meta.snapshots[-1])
        async for entry in self._store.read_log(session, after=meta.snapshots[-1], upto=meta.committed):
            memory.replay(entry)

    def _differ(self, what: str, expected: toy.State, found: toy.State) -> None:
        if expected.keys() != found.keys():
            self.violations.append(f"{what}: other tensors")
        for name in expected.keys() & found.keys():
            if not torch.equal(expected[name], found[name]):
                self.violations.append(f"{what}: {name} differs")


def _memory_folder() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
