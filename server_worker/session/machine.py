"""One session on a worker: the protocol, without I/O.

`WorkerSession.handle` is a generator: it yields actions (compute, store calls, replies) and is sent
their results, so that a shell can run them over real parts and a simulation inline. Requests are handled
one at a time, in order. What the worker has of the session, and its relation to the store, is in
`ownership.py`.

A step's micro-batches are computed in order, whatever the order of arrival (`reorder_buffer.py`), so that
gradients add up, and running statistics move, always the same way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from broker.protocol import messages as m
from server_worker.admission.authorization import may_train
from server_worker.admission.budget import Budget
from server_worker.engine.local import BodyTrainer, StepResult
from server_worker.loss_log import step_loss
from server_worker.rounds.turn import RoundTurns, Turn
from server_worker.session import replies
from server_worker.session.actions import Action, Committed, Compute, LoadJob, Result, Send, Steps, StoreCall
from server_worker.session.durability import DurabilityClock
from server_worker.session.opening import Opening
from server_worker.session.ownership import Ownership, WorkerIdentity, attempt_of
from server_worker.session.refusals import (
    CLOSE_RETRY_S,
    NO_ROOM,
    NOT_DURABLE,
    body_not_shared_reply,
    failure_reply,
    log_full_reply,
    no_memory_reply,
    not_allowed_reply,
    paused_reply,
    reopen_reply,
    stale_reply,
    unknown_job_reply,
)
from server_worker.session.reorder_buffer import MemoryBudget, PartKey, ReorderBuffer
from server_worker.store import Blob, Done, SessionMeta, StaleAttempt, StepBehind, UnknownSession
from spliteasy.errors import DataError, OutOfMemory, ReplayMismatch, StoreError
from spliteasy.training.segment_trainer import NotFinite

ROOM_RETRY_S = 1.0
STARVED_TRIES = 60
"""So often, without a step in between, a session's requests find no memory before they are given up: a minute
or more, as a device tries again after a second."""


class WorkerSession:
    """The protocol of one session on one worker."""

    def __init__(
        self,
        name: str,
        identity: WorkerIdentity,
        *,
        durability: DurabilityClock,
        memory_budget: MemoryBudget,
        budget: Budget,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.own = Ownership(name, identity, durability=durability, clock=clock)
        self._opening = Opening(self.own, load=self._load, drop=self.drop)
        self._arrivals = ReorderBuffer(memory_budget)
        self._budget = budget
        self._reserved = 0
        """Bytes of the budget that are this session's."""
        self._gradients: tuple[m.Gradient | m.Mean, ...] = ()
        """The replies of the committed step, by micro-batch."""
        self._turns = RoundTurns(clock)
        self._starved = 0
        """Requests that found no memory since the last commit."""

    # what the shell asks

    def memory_bytes(self) -> int:
        """Bytes that this session holds in memory."""
        memory = self.own.memory
        held = memory.state_bytes + memory.open_bytes if memory is not None else 0
        return held + self._arrivals.nbytes

    def knows(self, request: str) -> bool:
        """Whether the open step was computed from that request, or the request waits for its turn in it."""
        memory, ready = self.own.memory, self._turns.request
        if ready is not None and ready.request == request:
            return True
        return self._arrivals.holds(request) or (memory is not None and memory.knows(request))

    def drop(self) -> None:
        """Throw the memory away; the store has everything."""
        self.own.drop()
        self._gradients = ()
        self._arrivals.clear()
        self._turns.clear()
        self._settle()

    def doubt(self) -> None:
        """Another worker may have served the session meanwhile: ask the store before the memory is used.

        A commit on top of it would be refused without a word, and the device wait for its deadline.
        """
        self.own.doubted = True

    def handle(self, request: m.AnyRequest, raw: Blob) -> Steps:
        """Serve one request; `raw` is the request as received, for the log. Never raises for a bad one."""
        try:
            yield from self._dispatch(request, raw)
        except (DataError, NotFinite) as error:  # the request's fault: the committed step stays good
            self._abort()
            yield Send(failure_reply(request, error))
        except OutOfMemory as error:
            self.drop()
            self._starved += 1  # a job that is too large must not be tried for ever
            yield Send(failure_reply(request, error, again=self._starved < STARVED_TRIES))
        except (ReplayMismatch, StoreError, RuntimeError, ValueError, ArithmeticError) as error:
            self.drop()
            yield Send(failure_reply(request, error))
        finally:
            self._settle()

    def save(self) -> Steps:
        """Write a snapshot of the newest step, so that whoever takes over replays only what comes after."""
        yield from self.own.save()

    def park(self) -> Steps:
        """Save, then drop."""
        yield from self.own.save()
        self.drop()
        yield from self.own.let_go_of_writes()

    # requests

    def _dispatch(self, request: m.AnyRequest, raw: Blob) -> Steps:
        match request:
            case m.Open():
                yield from self._open(request)
            case m.Forward() | m.Backward():
                yield from self._step(request, raw)
            case m.Ready():
                yield from self._round_done(request)
            case m.Ask():
                yield from self._ask(request)
            case m.Eval():
                yield from self._eval(request)
            case m.GetBody():
                yield from self._get_body(request)
            case m.Close():
                yield from self._close(request)
            case m.GetJob():
                raise AssertionError("GET_JOB is not a session's request")

    def _open(self, request: m.Open) -> Steps:
        if not (yield from self._allowed(request, request.digest)):
            return
        job = yield LoadJob(request.job, request.digest)
        if job is None:
            yield Send(unknown_job_reply(request, request.digest))
            return
        yield from self._opening.open(request, job)

    def _step(self, request: m.Forward | m.Backward, raw: Blob) -> Steps:
        """Compute a request of the open step and all that waited for it; or let it wait for others."""
        memory = yield from self._ready(request)
        if memory is None or (yield from self._answer_again(request, memory)):
            return
        memory.check(request, memoryview(raw).nbytes)
        if self._begins(request, memory):
            if (yield from self._held_back(request)):
                return
            if isinstance(request, m.Forward) and not self._reserve(memory.step_bytes):
                yield Send(no_memory_reply(request))
                return
        if isinstance(request, m.Forward) and memory.forward_id(request.micro) is not None:
            self._abort()  # the device computed it anew: all begins anew
        if isinstance(request, m.Forward) and self.own.log_is_full:
            yield Send(log_full_reply(request, self.own.log_bytes))
            return
        if not self._arrivals.add(request, raw, memory.forwarded, memory.returned):
            yield Send(m.Busy(answers=request.request, retry_after_s=ROOM_RETRY_S, reason=NO_ROOM))
            return
        while (turn := self._arrivals.take(memory.forwarded, memory.returned)) is not None:
            yield from self._compute(memory, *turn)
        if self._arrivals.holds(request.request):
            yield from self._ask_for(request, (request.kind, request.micro), memory, news=True)

    def _compute(self, memory: BodyTrainer, request: m.Forward | m.Backward, raw: Blob) -> Steps:
        """Compute the request whose turn it is; the step's last one commits it."""
        micro = request.micro
        result: StepResult | None = None
        if isinstance(request, m.Forward):
            yield from self.own.begin(request)
            yield from self.own.log(request.step, micro, raw)
            yield Compute(lambda: memory.forward(request))
            if not request.targets:
                yield Send(replies.forwarded(self.own, memory, request))
                return
            result = yield Compute(memory.backward_from_loss)
        elif memory.forward_id(micro) != request.forward:
            yield Send(replies.missing(self.own, request, "FORWARD", micro))
            return
        else:
            memory.check(request, memoryview(raw).nbytes)
            yield from self.own.log(request.step, memory.micros + micro, raw)
            result = yield Compute(lambda: memory.backward(request))
        if result is None:
            yield Send(replies.early_gradient(self.own, memory, micro))
        else:
            requests = len(result.micros) * (1 if isinstance(request, m.Forward) else 2)
            loss = step_loss(request, memory, result)
            yield from self._commit(request, result, requests=requests, loss=loss)

    def _ask(self, request: m.Ask) -> Steps:
        kind = request.about_kind
        if kind == "READY":
            yield from self._ask_for_mean(request)
            return
        memory = yield from self._ready(request)
        if memory is None or (yield from self._answer_again(request, memory)):
            return
        if self._begins(request, memory) and (yield from self._held_back(request)):
            return
        if memory.forward_id(request.micro) not in (None, request.forward):
            yield Send(replies.missing(self.own, request, "FORWARD", request.micro))
        else:
            yield from self._ask_for(request, (kind, request.micro), memory)

    def _round_done(self, request: m.Ready) -> Steps:
        """Hand in what the device has trained in its round; it goes on from the mean once that is there."""
        memory = yield from self._ready(request)
        if memory is None:
            return
        if request.step == memory.step:
            yield Send(self._gradients[0])
            return
        if not memory.job.spec.fleet.averages:
            raise DataError(f"job {request.job} has no rounds, and READY arrived")
        self._abort()
        self._turns.begin(request)
        yield from self._take_turn(memory)

    def _ask_for_mean(self, request: m.Ask) -> Steps:
        memory = yield from self._ready(request)
        if memory is None:
            return
        waits = self._turns.request
        if request.step == memory.step:
            yield Send(self._gradients[0])
        elif waits is None or waits.request != request.about:
            yield Send(replies.missing(self.own, request, "READY", 0))
        else:
            yield from self._take_turn(memory)

    def _take_turn(self, memory: BodyTrainer) -> Steps:
        """Take the step that goes on from the mean, if the round has ended; else tell the device to wait."""
        request = self._turns.request
        assert request is not None
        if (yield from self._held_back(request)):
            return
        if self.own.log_is_full:
            yield Send(log_full_reply(request, self.own.log_bytes))
            return
        turn = yield from self._turns.take(memory)
        if not isinstance(turn, Turn):
            yield Send(turn)
            return
        parts = turn.logged(request)
        yield from self.own.begin(request)
        for index, part in enumerate(parts):
            yield from self.own.log(request.step, index, part)
        result = yield Compute(lambda: memory.rebase(request, turn.about, turn.mean))
        yield from self._commit(request, result, requests=len(parts), loss=None)

    def _answer_again(
        self, request: m.Forward | m.Backward | m.Ask, memory: BodyTrainer
    ) -> Generator[Action, Result, bool]:
        """Repeat the answer to a request (or to what an ASK is about) that was computed; whether it was."""
        micro = request.micro
        if micro >= memory.job.spec.micro_batches:
            raise DataError(f"micro-batch {micro}, the job has {memory.job.spec.micro_batches}")
        if request.step == memory.step:
            if micro >= len(self._gradients):
                raise DataError(f"step {request.step} has no micro-batch {micro}")
            yield Send(self._gradients[micro])
            return True
        forward = request.request if isinstance(request, m.Forward) else request.forward
        if memory.forward_id(micro) != forward:
            return False
        if micro < memory.returned:
            yield Send(replies.early_gradient(self.own, memory, micro))
            return True
        if isinstance(request, m.Forward) or (isinstance(request, m.Ask) and request.about_kind == "FORWARD"):
            yield Send(replies.forwarded(self.own, memory, request))
            return True
        return False

    def _ask_for(
        self, request: m.SessionRequest, place: PartKey, memory: BodyTrainer, *, news: bool = False
    ) -> Steps:
        """Say what is absent for `place` to be computed."""
        for kind, micro in self._arrivals.absent(place, memory.forwarded, memory.returned, news=news):
            yield Send(replies.missing(self.own, request, kind, micro))

    def _begins(self, request: m.Forward | m.Backward | m.Ask, memory: BodyTrainer) -> bool:
        """Whether the request is of a step of which nothing was computed here, or which begins anew."""
        forward = request.request if isinstance(request, m.Forward) else request.forward
        return not memory.forwarded or memory.forward_id(request.micro) not in (None, forward)

    def _held_back(self, request: m.SessionRequest) -> Generator[Action, Result, bool]:
        """Whether no step may begin now; the device was told so then."""
        own = self.own
        if own.paused:
            meta = yield StoreCall(lambda s: s.session(self.name))
            own.paused = meta is not None and meta.paused
        if own.paused:
            yield Send(paused_reply(request))
        return own.paused

    def _eval(self, request: m.Eval) -> Steps:
        memory = yield from self._ready(request, exact=True)
        if memory is not None:
            memory.check(request, 0)
            if not self._reserve(memory.open_bytes + memory.eval_bytes):
                yield Send(no_memory_reply(request))
                return
            outputs = yield Compute(lambda: memory.evaluate(request))
            yield Send(replies.evaluated(self.own, memory, request, outputs))

    def _get_body(self, request: m.GetBody) -> Steps:
        memory = yield from self._ready(request, exact=True)
        if memory is None:
            return
        if not memory.job.spec.share_body:
            yield Send(body_not_shared_reply(request))
            return
        tensors = yield Compute(
            lambda: {name: tensor.clone() for name, tensor in memory.trainer.segment.state_dict().items()}
        )
        yield Send(replies.body(self.own, memory, request, tensors))

    def _close(self, request: m.Close) -> Steps:
        memory = yield from self._ready(request, exact=True)
        if memory is None:
            return
        yield from self.own.save()
        attempt, owner = self.own.live
        outcome = yield StoreCall(lambda s: s.close_session(self.name, attempt=attempt, owner=owner))
        if not isinstance(outcome, Done):
            self.drop()
        elif outcome.meta.committed != memory.step:
            self.drop()
            yield Send(reopen_reply(request, f"the store went back to step {outcome.meta.committed}"))
        elif self.own.durable_step(memory.step) < memory.step:
            # The device may leave for good after CLOSED: not before the store can't lose the last step.
            yield Send(m.Busy(answers=request.request, retry_after_s=CLOSE_RETRY_S, reason=NOT_DURABLE))
        else:
            yield Send(replies.closed(self.own, memory, request))

    # may it, and is it here

    def _allowed(self, request: m.Open | m.SessionRequest, digest: str) -> Generator[Action, Result, bool]:
        """Whether the device may train that version of the job; it was told so where it may not."""
        allowed = yield StoreCall(lambda s: s.allowed([request.device]))
        if may_train(allowed.get(request.device), request.job, digest):
            return True
        yield Send(not_allowed_reply(request, digest))
        return False

    def _ready(
        self, request: m.SessionRequest, *, exact: bool = False
    ) -> Generator[Action, Result, BodyTrainer | None]:
        """Memory at the request's step or the one before, owned under its attempt.

        None: the request was answered, or is so old that nobody waits for an answer.
        """
        own, attempt = self.own, attempt_of(request.attempt)
        steps = (0,) if exact else (0, 1)
        fits = (
            own.memory is not None
            and own.attempt == attempt
            and request.step - own.memory.step in steps
            and (request.step != own.memory.step or exact or self._gradients)
        )
        if fits and not own.doubted:
            return own.memory
        if not fits:
            stored = yield StoreCall(lambda s: s.session(self.name))
            if stored is not None and stored.attempt == attempt:
                yield from own.check_environment(stored)  # before anything of another's is taken
        outcome = yield from own.claim(attempt, request.step)
        match outcome:
            case Done(meta=meta):
                if not (yield from self._allowed(request, meta.job_digest)):
                    return None
                if request.step - meta.committed not in steps:
                    yield Send(reopen_reply(request, f"the session is at step {meta.committed}"))
                    return None
                if fits and own.trusts_again(meta):
                    return own.memory
                yield from self._load(meta, replay_last=request.step == meta.committed and not exact)
                return own.memory
            case StaleAttempt(stored=stored):
                yield Send(stale_reply(request, stored))
            case StepBehind(committed=committed) if committed < request.step:
                yield Send(reopen_reply(request, f"the store is at step {committed}"))
            case StepBehind():
                pass  # a late duplicate: the device has moved on
            case UnknownSession():
                yield Send(reopen_reply(request, "the store does not know the session"))
        return None

    def _load(self, meta: SessionMeta, *, replay_last: bool = False) -> Steps:
        self.drop()
        result = yield from self.own.load(meta, replay_last=replay_last)
        if result is not None:
            self._gradients = replies.of_step(self.own, meta.committed, result)

    # the commit

    def _commit(
        self,
        request: m.Forward | m.Backward | m.Ready,
        result: StepResult,
        *,
        requests: int,
        loss: float | None,
    ) -> Steps:
        """Commit the step that memory has taken, reply. Anything but Done throws the memory away."""
        outcome = yield from self.own.commit(request.step, result.digest, requests=requests)
        if not isinstance(outcome, Done):
            self.drop()
            if isinstance(outcome, StaleAttempt):
                yield Send(stale_reply(request, outcome.stored))
            return  # a rival owns the session and serves it: nothing of ours took effect
        self._arrivals.clear()
        self._turns.clear()
        self._starved = 0
        yield Committed(self.name, request.step, loss)
        self._gradients = replies.of_step(self.own, request.step, result)
        yield Send(self._gradients[0 if isinstance(request, m.Ready) else request.micro])
        yield from self.own.snapshot_if_due()

    def _reserve(self, nbytes: int) -> bool:
        """Whether the session may take so many bytes in all, beside its state."""
        more = max(0, nbytes - self._reserved)
        if not self._budget.take(more):
            return False
        self._reserved += more
        return True

    def _settle(self) -> None:
        """Give back what is not in use any more."""
        memory = self.own.memory
        used = memory.open_bytes if memory is not None else 0
        self._budget.give_back(self._reserved - used)
        self._reserved = used

    def _abort(self) -> None:
        self._arrivals.clear()
        self.own.abort()
