"""The worker: connects, takes requests from the queues, runs sessions, drains on request.

    run ── _serve (one life of a connection) ── Queues.read per queue ── Intake ── SessionActor
     │                                                                └─ front queue: GET_JOB
     ├─ Heartbeat: presence in the store, fair share of shards (Balancing)
     └─ Losses: to the store, for curves

What the broker lost or the worker did not acknowledge comes again; what a session has in memory
survives a lost connection, because its fence in the store decides what may be committed.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal

import orjson
import structlog
from torch import Tensor

from broker import encode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembler, OverBudget
from broker.protocol.frames import CHUNK_BYTES, HEADER_BYTES, MIN_CHUNK_BYTES
from broker.protocol.labels import codec_label
from broker.transport.backoff import full_jitter
from broker.transport.base import Delivery, Depth, Subscription, Transport
from broker.transport.patience import SETTLED_S, Patience
from broker.transport.sender import send_message
from broker.transport.topology import FRONT, shard_queue, worker_queues
from server_worker import metrics
from server_worker.actor import BUSY_RETRY_S
from server_worker.actors import Actors
from server_worker.admission.deliveries import MAX_UNREAD, Deliveries
from server_worker.admission.intake import AwaitedFrames, Intake, Misdirected
from server_worker.admission.quotas import OVERHEAD_BYTES, Quotas
from server_worker.admission.reply_queues import ReplyQueues
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.base import Engine
from server_worker.inbound import Inbound, Settlement
from server_worker.job_cache import DeviceJobs, JobCache
from server_worker.loss_log import Losses
from server_worker.placement.balancer import Balancing
from server_worker.placement.heartbeat import Heartbeat
from server_worker.placement.queue_type import settle_queue_type
from server_worker.placement.queues import Queues
from server_worker.placement.shards import settle_shards
from server_worker.replica.durability import DurabilityClock
from server_worker.rounds.watch import RoundWatch
from server_worker.session.refusals import error_reply, reopen_reply
from server_worker.store import Store
from spliteasy.errors import LinkError, StoreError, UserError, WireError
from spliteasy.observability.meter import SILENT, Meter
from spliteasy.observability.traces import Tracer

log = structlog.get_logger(__name__)

Connect = Callable[[], Awaitable[Transport]]
NOTHING: Mapping[str, m.Ranges] = {}
SMALL = (m.Have, m.Missing, m.Busy, m.Working)
"""Answers that a tiny question can have many of, or large ones."""
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
        engine: Engine,
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
        self.engine = engine
        self.jobs = JobCache(store, engine, limit=config.jobs, request_tflop=config.request_tflop)
        self._device_jobs = DeviceJobs(store, shards=config.shards)
        self.steps = 0
        self.connected = asyncio.Event()
        self._connect = connect
        self._rng = rng
        self._durability = DurabilityClock(store.loss_window_s, clock)
        quotas = Quotas(config.quota, clock)
        self.actors = Actors(self, config, self._durability, clock, quotas.work)
        self.rounds = RoundWatch(store, self.actors.wake, clock)
        self.queues = Queues(config, self.actors, store)
        self.balancing = Balancing(config, self.queues, depth=self.depth, clock=clock)
        self.losses = Losses()
        self._intake = Intake(
            Assembler(config.uploads, clock), trust=config.trust, shards=config.shards, quotas=quotas
        )
        self._deliveries = Deliveries(store)
        self._replies = ReplyQueues(clock)
        self._heartbeat = Heartbeat(self)
        self._transport: Transport | None = None
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._draining = False
        self._log = log.bind(worker=config.name)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then drain. Raises LinkError and UserError as `Patience` has it.

        Raises UserError, too, where the stack has another number of shards, or another type of queues, than
        this worker's settings say.
        """
        await self._settle_stack()
        if self.config.trust is Trust.OPEN:
            self._log.warning("trust is open: any client of this broker can speak for any device")
        beside = [asyncio.create_task(each) for each in (self._heartbeat.run(), self._tell())]
        try:
            await self._serve_connections(stop)
        finally:
            for task in (*beside, *self._tasks):
                task.cancel()
            await asyncio.gather(*beside, *self._tasks, return_exceptions=True)
            await self.rounds.close()
            with suppress(StoreError):
                await self.store.leave(self.config.name)
                await self.losses.write(self.store)

    async def _settle_stack(self) -> None:
        """Make sure that all workers count shards alike, and declare the same type of queues.

        Raises UserError where they do not, and StoreError as `Patience` has it.
        """
        patience, delays = Patience(unreachable_s=self.config.patience_s, clock=self.clock), self._backoff()
        while True:
            try:
                await settle_queue_type(self.store, self.config.queues)
                await settle_shards(self.store, self.config.shards)
                return
            except StoreError as error:
                patience.check(error)
                await asyncio.sleep(next(delays))

    async def _serve_connections(self, stop: asyncio.Event) -> None:
        """One connection after the other, until `stop` is set. Raises as `run`."""
        config, told, delays = self.config, "", self._backoff()
        patience = Patience(unreachable_s=config.patience_s, limit_s=config.give_up_s, clock=self.clock)
        while not stop.is_set():
            began_s = self.clock()
            try:
                await self._serve_connection(patience, stop)
            except (LinkError, UserError) as error:
                patience.check(error)
                if self.clock() - began_s >= SETTLED_S:
                    told, delays = "", self._backoff()
                if error.message != told:
                    told = error.message
                    self._log.warning("the worker tries again", error=told, hint=error.hint)
                await _wait(stop, next(delays))

    async def _serve_connection(self, patience: Patience, stop: asyncio.Event) -> None:
        try:
            self._transport = await self._connect()
            await self._serve(self._transport, stop)
        finally:
            transport = self._transport
            if self.queues.subscriptions:
                patience.connected()
            await self._hang_up()
            patience.lost(None if transport is None else transport.lost)

    def _backoff(self) -> Iterator[float]:
        return full_jitter(max_s=BACKOFF_MAX_S, rng=self._rng)

    @property
    def state(self) -> str:
        """Return the state that the worker tells the others."""
        if self._draining:
            return "draining"
        return "serving" if self.connected.is_set() else "connecting"

    async def wait_connected(self, most_s: float) -> None:
        """Return when the queues are read, or after that time."""
        await _wait(self.connected, most_s)

    # what actors need

    async def send(
        self,
        reply_to: str,
        reply: m.Message,
        partial: Mapping[str, m.Ranges] = NOTHING,
        *,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        """Send a reply, in chunks no coarser than its request's; a lost one is asked for again. `partial` has
        the byte ranges of replies that the device holds already, by message id."""
        transport = self._transport
        if transport is None:
            return
        if not await self._may_answer(transport, reply_to, reply):
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
                chunk_bytes=min(self.config.chunk_bytes, max(chunk_bytes, MIN_CHUNK_BYTES)),
                sent=lambda frame_bytes: self.meter.add(metrics.BYTES, frame_bytes, "sent", codec),
            )
            self.meter.observe(metrics.REPLY_SECONDS, self.clock() - began, getattr(reply, "kind", ""))
        except* LinkError as errors:
            self._log.info(
                "a reply was not delivered", kind=getattr(reply, "kind", ""), error=str(errors.exceptions[0])
            )

    async def _may_answer(self, transport: Transport, reply_to: str, reply: m.Message) -> bool:
        """Return whether the reply queue is there, and bounded as devices are to declare it; and, for a small
        answer, whether what the device sent pays for it."""
        kind = getattr(reply, "kind", "")
        nbytes = sum(value.nbytes for value in reply.values if isinstance(value, Tensor))
        small = isinstance(reply, SMALL)
        if small and not self._intake.affords(reply_to, len(encode(reply)) + HEADER_BYTES + OVERHEAD_BYTES):
            self.meter.add(metrics.BUSY, 1, "silence")
            return False
        try:
            fit = await self._replies.is_fit(transport, reply_to, nbytes)
        except LinkError as error:
            self._log.info("a reply was not delivered", kind=kind, error=error.message)
            return False
        if not fit:
            self._log.info(
                "a reply was not delivered", kind=kind, error=f"{reply_to} is not there, or not bounded"
            )
        return fit

    def committed(self, session: str, step: int, loss: float | None) -> None:
        self.steps += 1
        self.meter.add(metrics.STEPS, 1, session.partition(".")[0])
        self._durability.committed(session, step)
        if loss is not None:
            self.losses.add(session, step, loss)

    def hand_on(self, session: str, why: str) -> None:
        """Leave the session's shard to others for a while, where there are any."""
        self.background(self.queues.leave(session, why))

    def holdings(self) -> metrics.Holdings:
        """Return what is held now, for the gauges."""
        sessions = self.actors.loaded()
        return metrics.Holdings(
            sessions=len(sessions),
            session_bytes=sum(session.memory_bytes() for session in sessions),
            jobs=len(self.jobs),
            job_limit=self.jobs.limit,
            waiting=sum(actor.waiting for actor in self.actors.all()),
            log_bytes=sum(session.replica.log_bytes for session in sessions),
            log_fill=max((session.replica.log_fill for session in sessions), default=0.0),
            snapshots=sum(session.replica.snapshots.kept for session in sessions),
            uploads=self._intake.uploads,
            upload_bytes=self._intake.upload_bytes,
            rows_bytes=self.actors.rows.nbytes,
        )

    async def depth(self, queue: str) -> Depth | None:
        """Return what a queue of the broker holds. Raises LinkError where there is no connection."""
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
        config = self.config
        await transport.declare(*worker_queues(config.shards, config.queues, dead_bytes=config.dead_bytes))
        self._replies.forget()
        await self._replies.may_look(transport)
        queues = [FRONT, *(shard_queue(n).name for n in range(self.config.shards))]
        stopped = asyncio.create_task(stop.wait())
        readers = [asyncio.create_task(self.queues.read(transport, queue, self._take)) for queue in queues]
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

    async def _take(self, delivery: Delivery, subscription: Subscription) -> None:
        if not await self._deliveries.may_read(delivery):
            reason = f"it was delivered again {MAX_UNREAD + 1} times without an end"
            await self._bury(delivery, subscription, reason, "poison")
            return
        settlement = self._settlement(delivery, subscription)
        try:
            taken = self._intake.take(delivery, settlement, arrived_s=self.clock())
        except WireError as error:
            await self._bury(delivery, subscription, error.message, "refused")
            return
        if isinstance(taken, Misdirected):
            await self._redirect(taken)
            await _ack(delivery, subscription)
            return
        if isinstance(taken, Inbound):
            self.meter.add(metrics.BYTES, taken.raw.nbytes, "received", codec_label(taken.request))
        receipt = self._receipt(taken)
        if receipt is not None:
            metrics.count_receipt(self.meter, receipt)
            await self.send(taken.reply_to, receipt)
            await _ack(delivery, subscription)
        elif not isinstance(taken, Inbound):
            await _ack(delivery, subscription)
        elif isinstance(taken.request, m.GetJob):
            self.background(self._answer_front(taken.request, taken))
        else:
            await self.actors.touch(taken.request.session).offer(taken)

    def _settlement(self, delivery: Delivery, subscription: Subscription) -> Settlement:
        """Return the ends that a whole request may come to."""

        async def ack() -> None:
            await _ack(delivery, subscription)
            await self._deliveries.served(delivery)

        async def dead_letter(reason: str) -> None:
            with suppress(LinkError):
                await self._bury(delivery, subscription, reason, "poison")
            await self._deliveries.served(delivery)

        return Settlement(ack=ack, dead_letter=dead_letter)

    async def _bury(
        self, delivery: Delivery, subscription: Subscription, reason: str, why: Literal["refused", "poison"]
    ) -> None:
        """Move it to the dead queue, where its sender has not filled that lately; else it is dropped."""
        if not self._intake.may_bury(delivery):
            self.meter.add(metrics.DEAD_LETTERS, 1, "dropped")
            await subscription.ack(delivery)
            return
        if why == "refused":
            self._log.warning("a delivery is refused", key=delivery.routing_key, reason=reason)
        self.meter.add(metrics.DEAD_LETTERS, 1, why)
        await subscription.dead_letter(delivery, reason)

    async def _redirect(self, taken: Misdirected) -> None:
        """Say which shard serves the session: the device asks there."""
        text = f"shard {taken.shard} serves the session"
        await self.send(taken.reply_to, reopen_reply(taken.request, text, shard=taken.shard))

    def _receipt(self, taken: Inbound | AwaitedFrames) -> m.Receipt | None:
        """Return what to say about a request's bytes, where not all of them are here.

        The last frame without the others is what a dead worker leaves: its successor asks for the rest.
        """
        if isinstance(taken, AwaitedFrames):
            outcome = taken.outcome
            if not outcome.last:
                return None
            if isinstance(outcome, OverBudget):
                return m.Busy(answers=outcome.message_id, retry_after_s=BUSY_RETRY_S)
            ranges = self._intake.held(taken.device, outcome.message_id)
            return m.Have(answers=outcome.message_id, ranges=ranges)
        actor = self.actors.get(taken.request.session)
        if isinstance(taken.request, m.Ask) and not (actor and actor.knows(taken.request)):
            ask = taken.request
            ranges = self._intake.asked(ask)
            return m.Have(answers=ask.about, ranges=ranges) if ranges else None
        return None

    async def _answer_front(self, request: m.GetJob, inbound: Inbound) -> None:
        try:
            reply: m.Reply = await self._device_jobs.answer(request)
        except StoreError as error:
            reply = error_reply(request, "unavailable", error.message, error.hint, retriable=True)
        await self.send(inbound.reply_to, reply, chunk_bytes=inbound.chunk_bytes)
        await inbound.ack()

    # the end of a connection

    async def _drain(self) -> None:
        """Write snapshots, take nothing new, finish what it has begun, let go."""
        self._draining = True
        self._log.info("the worker drains", sessions=len(self.actors))
        try:
            async with asyncio.timeout(self.config.drain_s):
                await self.queues.drain()
                await self.actors.park(self.actors.names())
        except TimeoutError:
            self._log.warning(
                "the drain took too long; other workers replay the rest", drain_s=self.config.drain_s
            )

    async def _hang_up(self) -> None:
        await self.queues.close()
        # Not before: what could not be answered must not be acknowledged.
        transport, self._transport = self._transport, None
        self.actors.doubt()
        if transport is not None:
            await transport.close()

    async def _tell(self) -> None:
        """Write losses to the store. Not in the heartbeat: others count on that, and on its time."""
        while True:
            await asyncio.sleep(self.config.heartbeat_s)
            try:
                await self.losses.write(self.store)
            except StoreError as error:
                self._log.info("losses were not written", error=error.message)


def reply_id(reply: m.Message) -> str:
    """The id of a reply's frames: the same header names the same bytes, so that a repeat can be resumed."""
    header = orjson.dumps(m.to_header(reply), option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(header, digest_size=8).hexdigest()


async def _ack(delivery: Delivery, subscription: Subscription) -> None:
    """Acknowledge; where the link is gone, it comes again."""
    with suppress(LinkError):
        await subscription.ack(delivery)


async def _wait(event: asyncio.Event, delay_s: float) -> None:
    """Sleep, or less if the event is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await event.wait()
