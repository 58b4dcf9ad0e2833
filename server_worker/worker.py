"""The worker: connects, takes requests from the queues, runs sessions, drains when told to.

    run ── _serve (one life of a connection) ── _read_queue per queue ── Intake ── SessionActor
     │                                                                 └─ front queue: GET_JOB
     ├─ _beat: heartbeat in the store, fair share of shards
     └─ _tell: losses to the store, for curves

What the broker lost or the worker did not acknowledge comes again; what a session has in memory
survives a lost connection, because its fence in the store decides what may be committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
import structlog

from broker import messages as m
from broker.backoff import full_jitter
from broker.chunks import Assembler, OverBudget
from broker.labels import codec_label
from broker.sending import send_message
from broker.topology import FRONT, shard_of, shard_queue, worker_queues
from broker.transport import Delivery, Depth, Subscription, Transport
from server_worker import metrics
from server_worker.actor import BUSY_RETRY_S, Incoming, SessionActor
from server_worker.allowing import forbidden
from server_worker.arrivals import Room
from server_worker.config import Trust, WorkerConfig, environment
from server_worker.durability import DurabilityClock
from server_worker.intake import Accepted, Intake, Waiting
from server_worker.jobs import JobCache, answer_get_job
from server_worker.losses import Losses
from server_worker.ownership import WorkerIdentity
from server_worker.placement import plan_moves
from server_worker.quotas import Quotas
from server_worker.refusals import error_reply
from server_worker.retention import forget_abandoned
from server_worker.session import WorkerSession
from server_worker.store import Store, WorkerInfo
from spliteasy.compute import Compute
from spliteasy.errors import LinkError, LinkRefused, SplitEasyError, StoreError, WireError
from spliteasy.job import Job
from spliteasy.metering import SILENT, Meter
from spliteasy.tracing import Tracer

log = structlog.get_logger(__name__)

Connect = Callable[[], Awaitable[Transport]]
NOTHING: Mapping[str, frozenset[int]] = {}
ACTIVE_S = 30.0
"""A session counts as active for this long after its last request."""
EMPTY_S = 120.0
LEFT_S = 30.0
"""How long a worker stays away from a shard with a session that it can't serve."""
SETTLE_BEATS = 3
"""After shards were handed on, so many heartbeats pass until all can see where they went."""
BACKOFF_MAX_S = 2.0
"""Workers are few: they are back before the devices, which wait for longer between two tries."""


class Worker:
    """One worker process (or task). `run` returns after a drain."""

    def __init__(
        self,
        config: WorkerConfig,
        *,
        connect: Connect,
        store: Store,
        compute: Compute,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
        meter: Meter = SILENT,
        tracer: Tracer | None = None,
    ) -> None:
        self.config = config
        self.meter = meter
        self.tracer = tracer
        self.clock = clock
        self.store = store
        self.compute = compute
        self.jobs = JobCache(store, compute, limit=config.jobs)
        self.steps = 0
        self.connected = asyncio.Event()
        self._connect = connect
        self._rng = rng
        self._identity = WorkerIdentity(nonce=m.new_nonce(), environment=environment())
        self._durability = DurabilityClock(store.loss_window_s, clock)
        self.room = Room(config.waiting_bytes)
        self._intake = Intake(
            Assembler(config.uploads, clock),
            trust=config.trust,
            shards=config.shards,
            quotas=Quotas(config.quota, clock),
        )
        self._losses = Losses()
        self._actors: OrderedDict[str, SessionActor] = OrderedDict()
        self._touched: dict[str, float] = {}
        self._transport: Transport | None = None
        self._subscriptions: dict[str, Subscription] = {}
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._loading_ahead: asyncio.Task[Any] | None = None
        self._started_at = time.time()
        self._draining = False
        self._left: set[str] = set()
        """Queues that are left to others for now."""
        self._in_line_for: frozenset[str] = frozenset()
        """Workers with too few sessions that this one has made way for."""
        self._settled_at = 0.0
        self._log = log.bind(worker=config.name)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain. Raises LinkRefused and UserError; survives lost links."""
        if self.config.trust is Trust.OPEN:
            self._log.warning("trust is open: any client of this broker can speak for any device")
        beat, tell = asyncio.create_task(self._beat()), asyncio.create_task(self._tell())
        try:
            delays = self._backoff()
            while not stop.is_set():
                try:
                    self._transport = await self._connect()
                    delays = self._backoff()
                    await self._serve(self._transport, stop)
                except LinkRefused:
                    raise
                except LinkError as error:
                    self._log.warning("broker lost", error=error.message)
                    await _wait(stop, next(delays))
                finally:
                    await self._hang_up()
        finally:
            beat.cancel()
            tell.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(beat, tell, *self._tasks, return_exceptions=True)
            with suppress(StoreError):
                await self.store.leave(self.config.name)
                await self._losses.write(self.store)

    def _backoff(self) -> Iterator[float]:
        return full_jitter(max_s=BACKOFF_MAX_S, rng=self._rng)

    # what actors need

    async def send(
        self, reply_to: str, reply: m.Message, partial: Mapping[str, frozenset[int]] = NOTHING
    ) -> None:
        """Send a reply; a lost one is asked for again. `partial`: frames of replies that have arrived."""
        transport = self._transport
        if transport is None:
            return
        message_id = reply_id(reply)
        began, codec = self.clock(), codec_label(reply)
        try:
            await send_message(
                transport,
                reply_to,
                reply,
                message_id=message_id,
                skip=partial.get(message_id, ()),
                to_queue=True,
                persistent=False,  # a broker that restarts may lose it: it is asked for again
                chunk_bytes=self.config.chunk_bytes,
                sent=lambda frame_bytes: self.meter.add(metrics.BYTES, frame_bytes, "sent", codec),
            )
            self.meter.observe(metrics.REPLY_SECONDS, self.clock() - began, getattr(reply, "kind", ""))
        except* LinkError as errors:
            self._log.info(
                "reply not delivered", kind=getattr(reply, "kind", ""), error=str(errors.exceptions[0])
            )

    def committed(self, session: str, step: int, loss: float | None) -> None:
        self.steps += 1
        self.meter.add(metrics.STEPS, 1, session.partition(".")[0])
        self._durability.committed(session, step)
        if loss is not None:
            self._losses.add(session, step, loss)

    def holdings(self) -> metrics.Holdings:
        """What is held now, for the gauges."""
        sessions = [actor.session for actor in self._actors.values() if actor.session.own.memory is not None]
        return metrics.Holdings(
            sessions=len(sessions),
            session_bytes=sum(session.memory_bytes() for session in sessions),
            jobs=len(self.jobs),
            job_limit=self.jobs.limit,
            waiting=sum(actor.waiting for actor in self._actors.values()),
            log_bytes=sum(session.own.log_bytes for session in sessions),
            log_fill=max((session.own.log_fill for session in sessions), default=0.0),
            snapshots=sum(session.own.snapshots.kept for session in sessions),
            uploads=self._intake.uploads,
            upload_bytes=self._intake.upload_bytes,
        )

    async def depth(self, queue: str) -> Depth | None:
        """What a queue of the broker holds. Raises LinkError where there is no connection."""
        if self._transport is None:
            raise LinkError("not connected")
        return await self._transport.depth(queue)

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run beside everything else; ended with the worker."""
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return task

    # one life of a connection

    async def _serve(self, transport: Transport, stop: asyncio.Event) -> None:
        await transport.declare(*worker_queues(self.config.shards, dead_bytes=self.config.dead_bytes))
        queues = [FRONT, *(shard_queue(n).name for n in range(self.config.shards))]
        stopped = asyncio.create_task(stop.wait())
        readers = [asyncio.create_task(self._read_queue(transport, queue)) for queue in queues]
        lost = asyncio.create_task(transport.wait_lost())
        self.connected.set()
        self._log.info("serving", queues=len(queues))
        try:
            done, _ = await asyncio.wait({stopped, lost, *readers}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped, lost}:
                task.result()
            if lost in done:
                raise LinkError("the connection to the broker was lost")
            await self._drain()
        finally:
            self.connected.clear()
            for task in (stopped, lost, *readers):
                task.cancel()
            await asyncio.gather(stopped, lost, *readers, return_exceptions=True)

    async def _read_queue(self, transport: Transport, queue: str) -> None:
        """Serve one queue for as long as the connection lives; subscribe again after a handover."""
        while True:
            self._left.discard(queue)
            try:
                subscription = await transport.subscribe(queue, prefetch=self.config.prefetch)
            except LinkRefused:
                if await transport.depth(queue) is not None:
                    raise
                raise LinkError(f"the queue {queue} was deleted") from None  # and is declared anew
            self._subscriptions[queue] = subscription
            async for delivery in subscription:
                await self._take(delivery, subscription)
            if self._draining:
                return
            await self._hand_over(queue, subscription)
            if queue in self._left:
                await asyncio.sleep(LEFT_S)

    async def _take(self, delivery: Delivery, subscription: Subscription) -> None:
        try:
            taken = self._intake.take(delivery)
        except WireError as error:
            self._log.warning("refused", key=delivery.routing_key, reason=error.message)
            self.meter.add(metrics.DEAD_LETTERS, 1, "refused")
            await subscription.dead_letter(delivery, error.message)
            return
        if isinstance(taken, Accepted):
            self.meter.add(metrics.BYTES, taken.raw.nbytes, "received", codec_label(taken.request))

        async def finish(poison: str | None = None) -> None:
            with suppress(LinkError):
                if poison is None:
                    await subscription.ack(delivery)
                else:
                    self.meter.add(metrics.DEAD_LETTERS, 1, "poison")
                    await subscription.dead_letter(delivery, poison)

        receipt = self._receipt(taken)
        if receipt is not None:
            metrics.count_receipt(self.meter, receipt)
            await self.send(taken.reply_to, receipt)
            await finish()
        elif not isinstance(taken, Accepted):
            await finish()
        elif isinstance(taken.request, m.GetJob):
            self.background(self._answer_front(taken.request, taken.reply_to, finish))
        else:
            actor = self._actor(taken.request.session)
            await actor.offer(
                Incoming(
                    request=taken.request,
                    raw=taken.raw,
                    reply_to=taken.reply_to,
                    finish=finish,
                    arrived_s=self.clock(),
                )
            )

    def _receipt(self, taken: Accepted | Waiting) -> m.Receipt | None:
        """What to say about a request's bytes, where not all of them are here.

        The last frame without the others is what a dead worker leaves: its successor asks for the rest.
        """
        if isinstance(taken, Waiting):
            outcome = taken.outcome
            if not outcome.last:
                return None
            if isinstance(outcome, OverBudget):
                return m.Busy(answers=outcome.message_id, retry_after_s=BUSY_RETRY_S)
            frames = self._intake.held(taken.device, outcome.message_id)
            return m.Have(answers=outcome.message_id, frames=frames)
        actor = self._actors.get(taken.request.session)
        if isinstance(taken.request, m.Ask) and not (actor and actor.knows(taken.request)):
            ask = taken.request
            frames = self._intake.held(ask.device, ask.about) or self._intake.adopt(ask)
            return m.Have(answers=ask.about, frames=frames) if frames else None
        return None

    async def _answer_front(
        self, request: m.GetJob, reply_to: str, finish: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            reply: m.Reply = await answer_get_job(request, self.store, shards=self.config.shards)
        except StoreError as error:
            reply = error_reply(request, "unavailable", error.message, error.hint, retriable=True)
        await self.send(reply_to, reply)
        await finish()

    def _actor(self, session: str) -> SessionActor:
        actor = self._actors.get(session)
        if actor is None:
            machine = WorkerSession(
                session, self._identity, durability=self._durability, room=self.room, clock=self.clock
            )
            actor = self._actors[session] = SessionActor(machine, self)
        self._actors.move_to_end(session)
        self._touched[session] = self.clock()
        return actor

    # draining and placement

    async def _drain(self) -> None:
        """Write snapshots, take nothing new, finish what is at hand, let go."""
        self._draining = True
        self._log.info("draining", sessions=len(self._actors))
        try:
            async with asyncio.timeout(self.config.drain_s):
                for queue, subscription in list(self._subscriptions.items()):
                    with suppress(LinkError):
                        await self._give(queue, subscription)
                await self._park(list(self._actors))
        except TimeoutError:
            self._log.warning("drain took too long; others replay what is left", drain_s=self.config.drain_s)

    async def _park(self, sessions: list[str]) -> None:
        """Snapshot and drop; an actor that gets another request meanwhile stays: two would be rivals."""
        for name in sessions:
            actor = self._actors.get(name)
            if actor is None:
                continue
            await actor.wait_idle()
            await actor.park()
            if actor.idle:
                self._forget_actor(name)

    def _forget_actor(self, name: str) -> None:
        self._actors.pop(name, None)
        self._touched.pop(name, None)
        self._durability.parted(name)

    async def _give(self, queue: str, subscription: Subscription) -> None:
        """Snapshot the queue's sessions, then take nothing more from it: the next in line gets it at once,
        and replays the steps since.
        """
        for name in self._sessions_of(queue):
            if actor := self._actors.get(name):
                await actor.save()
        await subscription.cancel()

    async def _hand_over(self, queue: str, subscription: Subscription) -> None:
        await self._park(self._sessions_of(queue))
        await subscription.close()

    def _sessions_of(self, queue: str) -> list[str]:
        shards = self.config.shards
        return [name for name in self._actors if shard_queue(shard_of(name, shards)).name == queue]

    async def _hang_up(self) -> None:
        for subscription in self._subscriptions.values():
            await subscription.close()
        self._subscriptions.clear()
        # Not before: what could not be answered must not be acknowledged.
        transport, self._transport = self._transport, None
        for actor in self._actors.values():
            actor.session.doubt()
        if transport is not None:
            await transport.close()

    async def _beat(self) -> None:
        """Heartbeat, programs of the others, fair share, memory budget, retention."""
        swept_at = self.clock()
        await _wait(self.connected, self.config.heartbeat_s)
        while True:
            try:
                info = self._info()
                await self.store.heartbeat(info, ttl_s=self.config.heartbeat_s * 5)
                await self._drop_forbidden()
                workers = await self.store.workers()
                self._load_ahead(workers)
                if self.config.balance and info.state == "serving":
                    await self._balance(workers)
                await self._keep_budget()
                if self.clock() - swept_at >= self.config.retention_check_s:
                    swept_at = self.clock()
                    await forget_abandoned(self.store, self.jobs)
            except SplitEasyError as error:
                self._log.warning("heartbeat failed", error=error.message)
            await asyncio.sleep(self.config.heartbeat_s)

    async def _tell(self) -> None:
        """Write losses to the store. Not in the heartbeat: others count on that, and on its time."""
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            try:
                await self._losses.write(self.store)
            except StoreError as error:
                self._log.info("losses not written", error=error.message)

    def _load(self) -> dict[int, int]:
        """Active sessions by shard."""
        horizon = self.clock() - ACTIVE_S
        load: dict[int, int] = {}
        for name, touched in self._touched.items():
            if touched > horizon:
                shard = shard_of(name, self.config.shards)
                load[shard] = load.get(shard, 0) + 1
        return load

    def _load_ahead(self, workers: Sequence[WorkerInfo]) -> None:
        """Load the programs of the others' sessions: a takeover then waits for none."""
        wanted = sorted({job for each in workers if each.worker != self.config.name for job in each.jobs})

        async def load() -> None:
            try:
                for job in await self.jobs.load_ahead(wanted):
                    self._log.info("job loaded ahead", job=job)
            except SplitEasyError as error:
                self._log.warning("no job loaded ahead", error=error.message)

        if self._loading_ahead is None or self._loading_ahead.done():
            self._loading_ahead = self.background(load())

    async def _balance(self, workers: Sequence[WorkerInfo]) -> None:
        """Hand shards on to workers with too few sessions: first make way for them, then let go."""
        load = self._load()
        plan = plan_moves(self.config.name, load, workers)
        if plan.takers and not await self._all_subscribed(workers):
            return
        takers = frozenset(plan.takers)
        if not takers <= self._in_line_for:
            self._in_line_for = takers
            others = [n for n in range(self.config.shards) if n not in load]
            await self._let_go([n for n in others if plan.next_in_line(n) != self.config.name])
            return  # by the next heartbeat all have seen the same, and made way
        if not takers:
            self._in_line_for = frozenset()
        if plan.give and self.clock() >= self._settled_at:
            self._settled_at = self.clock() + SETTLE_BEATS * self.config.heartbeat_s
            self._log.info("handing shards over", shards=plan.give)
            await self._let_go(plan.give)

    async def _let_go(self, shards: Iterable[int]) -> None:
        """Of shards, or of places in the line for them: this worker is the last in line then."""
        for shard in shards:
            queue = shard_queue(shard).name
            if subscription := self._subscriptions.get(queue):
                await self._give(queue, subscription)

    async def _all_subscribed(self, workers: Sequence[WorkerInfo]) -> bool:
        """Whether the broker still knows as many workers: one that died a moment ago has a heartbeat yet."""
        front = await self.depth(FRONT)
        return front is not None and front.consumers >= sum(each.state == "serving" for each in workers)

    def hand_on(self, session: str, why: str) -> None:
        """Leave the session's shard to others for a while, where there are any."""
        self.background(self._leave(shard_of(session, self.config.shards), session, why))

    async def _leave(self, shard: int, session: str, why: str) -> None:
        queue = shard_queue(shard).name
        try:
            workers = await self.store.workers()
        except StoreError:
            return  # it is asked for again
        others = [each for each in workers if each.worker != self.config.name and each.state == "serving"]
        if not others or queue in self._left:
            return
        self._left.add(queue)
        self._log.warning("leaving a shard to other workers", shard=shard, session=session, reason=why)
        with suppress(LinkError):
            await self._let_go([shard])

    def _drop_empty(self) -> None:
        """Forget sessions that hold nothing and were asked for nothing lately, such as made up ones."""
        horizon = self.clock() - EMPTY_S
        for name in [name for name, touched in self._touched.items() if touched < horizon]:
            actor = self._actors[name]
            if actor.idle and actor.session.own.memory is None:
                self._forget_actor(name)

    async def _drop_forbidden(self) -> None:
        """Forget what devices may not train any more: their next request is refused."""
        memories = {name: actor.session.own.memory for name, actor in self._actors.items()}
        held = {name: memory.job.digest for name, memory in memories.items() if memory is not None}
        for name in await forbidden(self.store, held):
            self._log.info("a device may not train this any more", session=name)
            await self._actors[name].park()

    async def _keep_budget(self) -> None:
        self._drop_empty()
        held = sum(actor.session.memory_bytes() for actor in self._actors.values())
        for name in [name for name, actor in self._actors.items() if actor.idle]:
            if held <= self.config.memory_bytes:
                return
            held -= self._actors[name].session.memory_bytes()
            self._log.info("parking a session", session=name)
            await self._park([name])

    def _info(self) -> WorkerInfo:
        load = self._load()
        return WorkerInfo(
            worker=self.config.name,
            started_at=self._started_at,
            sessions=sum(load.values()),
            shards=tuple(sorted(load)),
            steps=self.steps,
            host=socket.gethostname(),
            pid=os.getpid(),
            state="draining" if self._draining else "serving" if self.connected.is_set() else "connecting",
            jobs=tuple(sorted({f"{job.name}@{job.digest}" for job in self._jobs_in_use()})),
        )

    def _jobs_in_use(self) -> list[Job]:
        memories = [actor.session.own.memory for actor in self._actors.values()]
        return [memory.job for memory in memories if memory is not None]


def reply_id(reply: m.Message) -> str:
    """The id of a reply's frames: the same header names the same bytes, so that a repeat can be resumed."""
    header = orjson.dumps(m.to_header(reply), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(header, digest_size=8).hexdigest()


async def _wait(event: asyncio.Event, delay_s: float) -> None:
    """Sleep, or less if the event is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await event.wait()
