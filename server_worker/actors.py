"""The sessions that a worker holds: found by name, parked, forgotten."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable

import structlog

from broker.protocol import messages as m
from broker.transport.topology import shard_of, shard_queue
from server_worker.actor import ActorHost, SessionActor
from server_worker.admission.authorization import forbidden
from server_worker.admission.budget import Budget
from server_worker.config import WorkerConfig
from server_worker.kept_rows import KeptRows
from server_worker.replica.durability import DurabilityClock
from server_worker.replica.loaded_body import LoadedBody
from server_worker.replica.replica import BodyState, Replica, WorkerIdentity
from server_worker.session.machine import WorkerSession
from server_worker.session.reorder_buffer import MemoryBudget
from server_worker.store import Store

log = structlog.get_logger(__name__)

ACTIVE_S = 30.0
"""A session counts as active for this long after its last request."""
EMPTY_S = 120.0
OPEN_S = 10.0
"""An open step has its memory for itself this long, however many wait for it."""
OPEN_STEP_S = 24 * 3600.0
"""A step stays open for so long after the last that was heard of its device."""


class Actors:
    """The actors of one worker, by session, the least recently used first."""

    def __init__(
        self,
        host: ActorHost,
        config: WorkerConfig,
        durability: DurabilityClock,
        clock: Callable[[], float],
        may_work: Callable[[str, int], bool],
    ) -> None:
        """`may_work` says whether a device may make the worker go through so many bytes now."""
        self.memory_budget = MemoryBudget(config.waiting_bytes)
        self.budget = Budget(config.memory_bytes)
        self.rows = KeptRows(config.rows_bytes, clock)
        self._may_work = may_work
        self._host = host
        self._config = config
        self._durability = durability
        self._clock = clock
        self.identity = WorkerIdentity(nonce=m.new_nonce())
        self._actors: OrderedDict[str, SessionActor] = OrderedDict()
        self._touched: dict[str, float] = {}
        self._log = log.bind(worker=config.name)

    def __len__(self) -> int:
        return len(self._actors)

    def get(self, session: str) -> SessionActor | None:
        """Return the session's actor, if there is one."""
        return self._actors.get(session)

    def __getitem__(self, session: str) -> SessionActor:
        return self._actors[session]

    def touch(self, session: str) -> SessionActor:
        """The actor of a session that is asked for something now."""
        actor = self._actors.get(session)
        if actor is None:
            job, _, device = session.partition(".")
            replica = Replica(
                session, self.identity, job=job, device=device, durability=self._durability, clock=self._clock
            )
            machine = WorkerSession(
                session,
                replica,
                shard=shard_of(session, self._config.shards),
                memory_budget=self.memory_budget,
                budget=self.budget,
                rows=self.rows,
                may_work=self._may_work,
                clock=self._clock,
            )
            actor = self._actors[session] = SessionActor(machine, self._host)
        self._actors.move_to_end(session)
        self._touched[session] = self._clock()
        return actor

    def wake(self, session: str) -> Awaitable[None] | None:
        """Let the device of a session go on that waits for a round; None where the session is not here."""
        actor = self._actors.get(session)
        return None if actor is None else actor.wake()

    # looking

    def names(self) -> list[str]:
        return list(self._actors)

    def all(self) -> list[SessionActor]:
        return list(self._actors.values())

    def loaded(self) -> list[WorkerSession]:
        """The sessions whose memory is here."""
        sessions = [actor.session for actor in self._actors.values()]
        return [session for session in sessions if session.replica.body is not None]

    def of_queue(self, queue: str) -> list[str]:
        """The sessions whose requests come by that queue."""
        return [
            name for name, actor in self._actors.items() if shard_queue(actor.session.shard).name == queue
        ]

    def active_by_shard(self) -> dict[int, int]:
        """Return how many active sessions each shard has."""
        horizon = self._clock() - ACTIVE_S
        load: dict[int, int] = {}
        for name, touched in self._touched.items():
            if touched > horizon:
                shard = self._actors[name].session.shard
                load[shard] = load.get(shard, 0) + 1
        return load

    def idle_s(self, session: str) -> float:
        """Return how long ago the session was asked for anything, or infinity where nothing is known of it
        here."""
        actor = self._actors.get(session)
        if actor is not None and not actor.idle:
            return 0.0
        return self._clock() - self._touched.get(session, -math.inf)

    def jobs(self) -> tuple[str, ...]:
        """The jobs in use, as `name@digest`."""
        bodies = [session.replica.body for session in self.loaded()]
        return tuple(sorted({f"{each.job.name}@{each.job.digest}" for each in bodies if each is not None}))

    # letting go

    def doubt(self) -> None:
        """Others may serve the sessions from now on: the store is asked before a memory is used."""
        for actor in self._actors.values():
            actor.session.doubt()

    async def save(self, sessions: Iterable[str]) -> None:
        """Write snapshots, and keep the memory."""
        for name in sessions:
            if actor := self._actors.get(name):
                await actor.save()

    async def park(self, sessions: Iterable[str]) -> None:
        """Snapshot and drop; an actor that gets another request meanwhile stays: two would be rivals."""
        for name in sessions:
            actor = self._actors.get(name)
            if actor is None:
                continue
            await actor.wait_idle()
            await actor.park()
            if actor.idle:
                self._forget(name)

    async def keep_requests(self, store: Store) -> None:
        """Let the requests of steps that are open live on in the store, however slow their devices are."""
        horizon = self._clock() - OPEN_STEP_S
        for name, actor in list(self._actors.items()):
            if actor.session.replica.state is not BodyState.FORWARDED:
                continue
            if actor.idle and self._touched[name] < horizon:
                self._log.info("the device of an open step was not heard of for too long", session=name)
                await actor.park()
                continue
            attempt, owner = actor.session.live
            await store.keep_requests(name, attempt=attempt, owner=owner)

    async def park_forbidden(self, store: Store) -> None:
        """Drop what devices may not train any more: their next request is refused."""
        bodies = {name: actor.session.replica.body for name, actor in self._actors.items()}
        held = {name: body.job.digest for name, body in bodies.items() if body is not None}
        for name in await forbidden(store, held):
            self._log.info("a device may not train this any more", session=name)
            await self._actors[name].park()

    async def keep_budget(self) -> None:
        """Park idle sessions beyond the memory that they may take together, or that others wait for."""
        self._forget_empty()
        sessions = [actor.session for actor in self._actors.values()]
        bodies = [session.replica.body for session in sessions if session.replica.body is not None]
        shared = shared_bytes(bodies)
        self.budget.states_bytes = sum(body.state_bytes for body in bodies) + shared
        held = sum(session.memory_bytes() for session in sessions) + shared + self.budget.wanted_bytes
        self.budget.wanted_bytes = 0
        horizon = self._clock() - OPEN_S
        for name in [name for name, actor in self._actors.items() if actor.idle]:
            if held <= self._config.memory_bytes:
                return
            session = self._actors[name].session
            if session.replica.state is BodyState.FORWARDED and self._touched[name] > horizon:
                continue  # two sessions that want each other's memory must not throw each other out for ever
            held -= session.memory_bytes()
            self._log.info("a session is parked", session=name)
            await self.park([name])

    def _forget_empty(self) -> None:
        """Forget sessions that hold nothing and were asked for nothing lately, such as made up ones."""
        horizon = self._clock() - EMPTY_S
        for name in [name for name, touched in self._touched.items() if touched < horizon]:
            actor = self._actors[name]
            if actor.idle and actor.session.replica.body is None:
                self._forget(name)

    def _forget(self, name: str) -> None:
        self._actors.pop(name, None)
        self._touched.pop(name, None)
        self._durability.parted(name)
        self.rows.forget(name)


def shared_bytes(bodies: Iterable[LoadedBody]) -> int:
    """Return the bytes of the frozen tensors that the bodies use, each counted once."""
    by_job = {body.job.digest: body.shared_bytes for body in bodies}
    tensors: dict[str, int] = {}
    for each in by_job.values():
        tensors.update(each)
    return sum(tensors.values())
