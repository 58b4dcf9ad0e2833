"""Runs one session's requests in order: performs what `WorkerSession` asks for, over real parts."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol

import structlog

from broker.protocol import messages as m
from server_worker import metrics
from server_worker.action import Action, Steps
from server_worker.engine.base import Engine, EngineRequest
from server_worker.inbound import Inbound
from server_worker.job_cache import JobCache
from server_worker.replica.actions import Loaded, LoadJob
from server_worker.rounds.actions import AwaitRound, BeAlone
from server_worker.rounds.watch import RoundWatch
from server_worker.session.actions import Committed, Send
from server_worker.session.machine import WorkerSession
from server_worker.session.refusals import deadly_reply, error_reply
from server_worker.spans import RequestSpans, spans_of
from server_worker.store import Store
from server_worker.store.calls import Begin, Finish, StoreAction
from server_worker.store.fleet_calls import AppendRound
from spliteasy.errors import KeyMissing, NeedsNewer, SplitEasyError, UnlikeWorker
from spliteasy.job.micro_batches import MAX_MICRO_BATCHES
from spliteasy.observability.meter import Meter
from spliteasy.observability.traces import Tracer

log = structlog.get_logger(__name__)

MAX_WAITING = 8 + MAX_MICRO_BATCHES
"""Requests of one session that may wait: a device has one of each micro-batch on the way, and repeats."""

MAX_REPLYING = 4
"""Served requests of one session whose replies wait for the broker's confirm; the next is served after."""

BUSY_RETRY_S = 1.0
MAX_DELIVERIES = 5
"""A request that was delivered again so often, and served to no end, ends its workers: it is buried."""

POISONOUS: frozenset[m.ErrorCode] = frozenset(
    {"bad-request", "bad-tensor", "computation-failed", "not-finite"}
)
"""Errors that the same request would meet again: it is kept in the dead queue, to be looked at."""

_WAITED_FOR = {NeedsNewer: "does", UnlikeWorker: "is", KeyMissing: "can open it"}
"""A worker that serves a session which this one can't, by why it can't."""


class ActorHost(Protocol):
    """The worker as its actors see it."""

    store: Store
    engine: Engine
    jobs: JobCache
    meter: Meter
    tracer: Tracer | None
    clock: Callable[[], float]
    rounds: RoundWatch

    async def send(
        self,
        reply_to: str,
        reply: m.Message,
        partial: Mapping[str, m.Ranges] = ...,
        *,
        chunk_bytes: int = ...,
    ) -> None:
        """Send a reply; a lost one is asked for again, so that it never raises for the link."""
        ...

    def committed(self, session: str, step: int, loss: float | None) -> None: ...

    def hand_on(self, session: str, why: str) -> None:
        """Leave a session to others that this worker can't serve."""
        ...

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run beside everything else; awaited when the worker ends."""
        ...


class SessionActor:
    """One session's mailbox and the task that empties it.

    Replies leave in order, while the next request is served. A request is finished once its replies are
    confirmed.
    """

    def __init__(self, session: WorkerSession, host: ActorHost) -> None:
        self.session = session
        self._host = host
        self._mailbox: deque[Inbound] = deque()
        self._current: m.AnyRequest | None = None
        self._reply_to = ""
        self._chunk_bytes = 0
        """The chunk size of the request that is being served."""
        self._poison: str | None = None
        """Why the current request can never be served."""
        self._partial: Mapping[str, m.Ranges] = {}
        self._sends: list[asyncio.Task[None]] = []
        """The sends of the request that is being served."""
        self._spans: RequestSpans | None = None
        """The spans of the request that is being served, where traces are made."""
        self._sending = asyncio.Lock()
        self._replying: list[str] = []
        """Requests that were served and are not finished."""
        self._woken: asyncio.Future[None] | None = None
        """The round of the device that waits may have ended: done when that was looked at."""
        self._closed: str | None = None
        """The fleet whose round was closed by what is being served."""
        self._alone: asyncio.Lock | None = None
        """Held by what is being served, where it closes a round or takes a mean."""
        self._room = asyncio.Semaphore(MAX_REPLYING)
        self._serving = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._gate = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._mailbox)

    @property
    def idle(self) -> bool:
        return self._idle.is_set()

    async def wait_idle(self) -> None:
        """Return when no request is served or waits, and all replies have left."""
        await self._idle.wait()

    async def offer(self, inbound: Inbound) -> None:
        """Take a request; answers at once what needs no turn (WORKING, BUSY)."""
        self._reply_to = inbound.reply_to
        request = inbound.request
        if isinstance(request, m.Ask):
            self._partial = dict(zip(request.partial, request.partial_ranges, strict=False))
        if isinstance(request, m.Ask) and self._is_at(request):
            working = m.Working(
                session=request.session, answers=request.request, attempt=request.attempt, step=request.step
            )
            await self._host.send(self._reply_to, working)
            await inbound.ack()
        elif len(self._mailbox) >= MAX_WAITING:
            busy = m.Busy(answers=request.request, retry_after_s=BUSY_RETRY_S)
            self._host.meter.add(metrics.BUSY, 1, "mailbox")
            await self._host.send(self._reply_to, busy)
            await inbound.ack()
        else:
            self._mailbox.append(inbound)
            self._begin_to_serve()

    def wake(self) -> asyncio.Future[None]:
        """Let the device go on that waits for a round, if that has ended; done once that was looked at.

        The device has not asked. Where what it is told is lost, it asks again by itself.
        """
        if self._woken is None:
            self._woken = asyncio.get_running_loop().create_future()
            self._begin_to_serve()
        return self._woken

    def _begin_to_serve(self) -> None:
        self._idle.clear()
        if not self._serving:
            self._serving = True
            self._host.background(self._empty_mailbox())

    async def save(self) -> None:
        """Snapshot; waits for the current request. A failed snapshot costs a replay."""
        await self._between_requests(self.session.save)

    async def park(self) -> None:
        """Save the session, and drop it from memory."""
        await self._between_requests(self.session.park)

    async def _between_requests(self, steps: Callable[[], Steps[None]]) -> None:
        async with self._gate:
            try:
                await self._perform_all(steps())
            except SplitEasyError as error:
                log.warning("no snapshot could be written", session=self.session.name, error=error.message)
                self.session.drop()

    def knows(self, ask: m.Ask) -> bool:
        """Return whether the asked request is here whole: served, about to be, or of the open step."""
        return self._is_at(ask) or self.session.knows(ask.about)

    def _is_at(self, ask: m.Ask) -> bool:
        """Return whether the asked request waits, is being served, or its reply is on its way."""
        here = [inbound.request for inbound in self._mailbox]
        if self._current is not None:
            here.append(self._current)
        return ask.about in self._replying or any(_served(request) == ask.about for request in here)

    async def _empty_mailbox(self) -> None:
        try:
            while self._mailbox or self._woken is not None:
                if self._woken is not None:
                    await self._look_again(self._woken)
                    continue
                await self._room.acquire()
                inbound = self._mailbox.popleft()
                self._current, self._chunk_bytes = inbound.request, inbound.chunk_bytes
                self._poison, self._sends = None, []
                async with self._gate:
                    began = self._host.clock()
                    waited_s = began - inbound.arrived_s
                    self._host.meter.observe(metrics.QUEUE_SECONDS, waited_s)
                    spans = self._spans = spans_of(self._host.tracer, inbound.request, waited_s=waited_s)
                    await self._serve(inbound)
                    self._tell_of_the_end()
                    if inbound.again:
                        with suppress(SplitEasyError):
                            await self._host.store.end_delivery(
                                inbound.request.session, inbound.request.request
                            )
                    if spans is not None:
                        spans.served()
                        self._spans = None
                    self._host.meter.observe(
                        metrics.REQUEST_SECONDS, self._host.clock() - began, inbound.request.kind
                    )
                self._current = None
                self._replying.append(_served(inbound.request))
                self._host.background(self._finish(inbound, self._sends, self._poison))
        finally:
            self._current = None
            self._serving = False
            self._rest()

    async def _look_again(self, woken: asyncio.Future[None]) -> None:
        """Take the turn of a device that waits, and send it the mean. Replies leave before anything else."""
        try:
            self._sends = []
            waiting = self.session.waits
            if waiting is not None:
                async with self._gate:
                    await self._take(waiting, self.session.look_again(waiting))
                    self._tell_of_the_end()
                await asyncio.gather(*self._sends)
        except Exception:
            log.exception("a device that waits was not told", session=self.session.name)
        finally:
            self._woken = None
            if not woken.done():
                woken.set_result(None)

    def _tell_of_the_end(self) -> None:
        """Let the others go on whose round this session has closed: the mean is there by now."""
        if self._closed is not None:
            self._host.rounds.ended(self._closed)
            self._closed = None

    async def _finish(self, inbound: Inbound, sends: list[asyncio.Task[None]], poison: str | None) -> None:
        """Finish a request once its replies have left: a dead worker's requests come again, and so do their
        replies."""
        request = inbound.request
        try:
            try:
                await asyncio.gather(*sends)
            except Exception as error:
                log.exception("reply failed", session=request.session, kind=request.kind)
                poison = f"the worker failed: {type(error).__name__}"
                await self._send(
                    error_reply(request, "internal", poison), self._reply_to, {}, inbound.chunk_bytes
                )
            await (inbound.ack() if poison is None else inbound.dead_letter(poison))
        finally:
            self._replying.remove(_served(request))
            self._room.release()
            self._rest()

    def _rest(self) -> None:
        if not self._serving and not self._replying:
            self._idle.set()

    def _begin_to_send(self, reply: m.Reply | m.Receipt) -> None:
        sending = self._send(reply, self._reply_to, self._partial, self._chunk_bytes, self._spans)
        self._sends.append(self._host.background(sending))

    async def _send(
        self,
        reply: m.Reply | m.Receipt,
        reply_to: str,
        partial: Mapping[str, m.Ranges],
        chunk_bytes: int,
        spans: RequestSpans | None = None,
    ) -> None:
        async with self._sending:
            began_ns = spans.now_ns() if spans is not None else 0
            await self._host.send(reply_to, reply, partial, chunk_bytes=chunk_bytes)
            if spans is not None:
                spans.replied(getattr(reply, "kind", ""), began_ns)

    async def _serve(self, inbound: Inbound) -> None:
        again = inbound if inbound.again else None
        await self._take(inbound.request, self.session.handle(inbound.request, inbound.raw), again=again)

    async def _take(self, request: m.AnyRequest, steps: Steps[None], *, again: Inbound | None = None) -> None:
        """Take the steps of a request, which may have been delivered `again`. What fails is answered."""
        try:
            if (
                again is not None
                and await self._host.store.begin_delivery(request.session, request.request) > MAX_DELIVERIES
            ):
                self.session.drop()
                self._poison = f"{request.kind} was delivered {MAX_DELIVERIES + 1} times without an end"
                self._begin_to_send(deadly_reply(request))
                return
            await self._perform_all(steps)
        except (NeedsNewer, UnlikeWorker, KeyMissing) as error:
            self.session.drop()
            text = f"{error.message}; waiting for a worker that {_WAITED_FOR[type(error)]}"
            hint = "upgrade the workers" if isinstance(error, NeedsNewer) else error.hint
            self._begin_to_send(error_reply(request, "unavailable", text, hint, retriable=True))
            self._host.hand_on(request.session, error.message)
        except SplitEasyError as error:
            log.warning("a request failed", session=request.session, kind=request.kind, error=str(error))
            self.session.drop()
            self._begin_to_send(
                error_reply(request, "internal", error.message, error.hint, retriable=error.retriable)
            )
        except Exception as error:
            log.exception("a request failed", session=request.session, kind=request.kind)
            self.session.drop()
            text = f"the worker failed: {type(error).__name__}"
            self._poison = text
            self._begin_to_send(error_reply(request, "internal", text))
        finally:
            if self._alone is not None:
                self._alone.release()
                self._alone = None

    async def _perform_all(self, steps: Steps[None]) -> None:
        try:
            action = next(steps)
            while True:
                try:
                    performed = self._perform(action)
                    result = await (
                        performed if self._spans is None else self._spans.timed(action, performed)
                    )
                except Exception as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(result)
        except StopIteration:
            return
        finally:
            steps.close()

    async def _perform(self, action: Action[Any]) -> Any:
        host = self._host
        match action:
            case EngineRequest():
                return await host.engine.perform(action)
            case AppendRound():
                self._closed = action.fleet
                return await asyncio.shield(self._begun(action))
            case StoreAction():
                return await asyncio.shield(self._begun(action))
            case AwaitRound(device, known):
                return host.rounds.wait(device, known)
            case BeAlone(fleet):
                if self._alone is None:
                    lock = host.rounds.lock(fleet)
                    await lock.acquire()
                    self._alone = lock
                return None
            case Begin(call):
                return self._begun_aside(call)
            case Finish(handle):
                return await asyncio.shield(handle)
            case LoadJob(name, digest):
                return await host.jobs.get(name, digest)
            case Send(reply):
                metrics.count_answer(host.meter, reply)
                if isinstance(reply, m.Error) and reply.code in POISONOUS:
                    self._poison = f"{reply.code}: {reply.message}"
                return self._begin_to_send(reply)
            case Committed(session, step, loss):
                return host.committed(session, step, loss)
            case Loaded(session, step, replayed, unlike):
                if unlike is not None:
                    log.warning("the session goes on with other bits", session=session, computed_on=unlike)
                log.info("session loaded", session=session, step=step, replayed=replayed)
                host.meter.add(metrics.TAKEOVERS)
                host.meter.add(metrics.REPLAYED, replayed)
                return None

    def _begun(self, action: StoreAction[Any]) -> asyncio.Future[Any]:
        """Return the call as a task that goes on when nobody waits for it: a commit must not stop halfway."""
        task = asyncio.ensure_future(action.call(self._host.store))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _begun_aside(self, action: StoreAction[Any]) -> asyncio.Future[Any]:
        """Return a call that perhaps nobody waits for any more: why it fails is logged."""

        def note(done: asyncio.Future[Any]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                log.warning(
                    "a store call failed that was made in the background",
                    session=self.session.name,
                    call=type(action).__name__,
                    error=str(error),
                )

        task = self._begun(action)
        task.add_done_callback(note)
        return task


def _served(request: m.AnyRequest) -> str:
    """The id of what is served: a RECALL stands for its FORWARD, and that is what a device asks about."""
    return request.forward if isinstance(request, m.Recall) else request.request
