"""One session on a worker: the protocol, without I/O.

`WorkerSession.handle` is a generator: it yields actions (compute, store calls, replies) and is sent
their results, so that a shell can run them over real parts and a simulation inline. Requests are handled
one at a time, in order. The session is a device's conversation: its attempt, its requests and the replies to
them. What it trains is a replica (`server_worker/replica/`), of which it is a member.

A step's micro-batches are computed in order, whatever the order of arrival (`reorder_buffer.py`), so that
gradients add up, and running statistics move, always the same way.
"""

from __future__ import annotations

from collections.abc import Callable

from broker import encode
from broker.protocol import messages as m
from server_worker.action import Steps
from server_worker.admission.authorization import may_train
from server_worker.admission.budget import Budget
from server_worker.kept_rows import KeptRows
from server_worker.loss_log import step_loss
from server_worker.replica.actions import LoadJob
from server_worker.replica.loaded_body import LoadedBody, StepResult
from server_worker.replica.replica import Replica
from server_worker.replica.request_checks import check_recall
from server_worker.rounds.turn import RoundTurns, Turn
from server_worker.rounds.waiting import SETTLING
from server_worker.session.actions import Committed, Send
from server_worker.session.opening import Opening, attempt_of
from server_worker.session.refusals import (
    CLOSE_RETRY_S,
    NO_ROOM,
    NOT_DURABLE,
    behind_reply,
    body_not_shared_reply,
    failure_reply,
    log_full_reply,
    no_memory_reply,
    not_allowed_reply,
    over_quota_reply,
    paused_reply,
    reopen_reply,
    stale_reply,
    unknown_job_reply,
)
from server_worker.session.reorder_buffer import MemoryBudget, PartKey, ReorderBuffer
from server_worker.session.replies import Replies
from server_worker.session.states import State, transition
from server_worker.store import (
    Attempt,
    Blob,
    Done,
    Owner,
    SessionMeta,
    StaleAttempt,
    StepBehind,
    UnknownSession,
)
from server_worker.store.calls import CloseSession, ReadAllowed, ReadSession
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
        replica: Replica,
        *,
        shard: int,
        memory_budget: MemoryBudget,
        budget: Budget,
        rows: KeptRows,
        may_work: Callable[[str, int], bool],
        clock: Callable[[], float],
    ) -> None:
        """`may_work` says whether a device may make the worker go through so many bytes now."""
        self.name = name
        self.replica = replica
        """The replica that it trains."""
        self.attempt: Attempt | None = None
        """The device's, as the store has it; None where the session was not opened or loaded here."""
        self.paused = False
        """True where the operator lets no step begin, as the store last said (at a commit, load or open)."""
        self.shard = shard
        """The shard that serves the session."""
        self._opening = Opening(
            name, replica, shard=shard, accept=self._accept, load=self._load, drop=self.drop
        )
        self._arrivals = ReorderBuffer(memory_budget)
        self._budget = budget
        self._rows, self._may_work = rows, may_work
        self._reserved = 0
        """Bytes of the budget that are this session's."""
        self._gradients: tuple[m.Gradient | m.Mean, ...] = ()
        """The replies of the committed step, by micro-batch."""
        self._turns = RoundTurns(clock)
        self._starved = 0
        """Requests that found no memory since the last commit."""

    @property
    def live(self) -> tuple[Attempt, Owner]:
        """The attempt and owner that every write names. Only where the session was opened or loaded."""
        assert self.attempt is not None
        return self.attempt, self.replica.live_owner

    @property
    def replies(self) -> Replies:
        """The replies that say yes to the device, as long as the session is open here."""
        return Replies(self.name, self.live[0], self.replica)

    # what the shell asks

    @property
    def state(self) -> State:
        """Return what of the session is here, and what it waits for."""
        body = self.replica.body
        if body is None:
            return State.ABSENT
        if self._turns.request is not None:
            return State.ROUND_END
        if body.forwarded:
            return State.IN_STEP
        return State.WAITING if self._arrivals.nbytes else State.READY

    def memory_bytes(self) -> int:
        """Bytes that this session holds in memory."""
        body = self.replica.body
        held = body.state_bytes + body.open_bytes if body is not None else 0
        return held + self._arrivals.nbytes

    def knows(self, request: str) -> bool:
        """Return whether the open step was computed from that request, or the request waits for its turn."""
        body, ready = self.replica.body, self._turns.request
        if ready is not None and ready.request == request:
            return True
        return self._arrivals.holds(request) or (body is not None and body.knows(request))

    def drop(self) -> None:
        """Throw the body away; the store has everything."""
        self.replica.drop()
        self.attempt = None
        self._gradients = ()
        self._arrivals.clear()
        self._turns.clear()
        self._settle()

    def doubt(self) -> None:
        """Another worker may have served the session meanwhile: ask the store before the body is used.

        A commit on top of it would be refused without a word, and the device wait for its deadline.
        """
        self.replica.doubted = True

    def handle(self, request: m.AnyRequest, raw: Blob) -> Steps[None]:
        """Serve one request; `raw` is the request as received, for the log. Never raises for a bad one."""
        yield from self._guarded(request, self._dispatch(request, raw))

    @property
    def waits(self) -> m.Ready | None:
        """The request of a device that waits for the end of its round, where that is here."""
        return self._turns.request if self.replica.body is not None else None

    def look_again(self, waiting: m.Ready) -> Steps[None]:
        """Let the device go on whose request waits, if its round has ended. It did not ask again, so that
        nothing is sent where it waits on."""
        body = self.replica.body
        if body is not None and not self.replica.doubted:
            yield from self._guarded(waiting, self._take_turn(body, asked=False))

    def _guarded(self, request: m.AnyRequest, steps: Steps[None]) -> Steps[None]:
        """Take the steps of a request; what fails is answered, and throws away what is in doubt."""
        before = self.state
        try:
            try:
                yield from steps
            except (DataError, NotFinite) as error:  # the request's fault: the committed step stays good
                yield from self._abort()
                yield from Send(failure_reply(request, error))
        except OutOfMemory as error:
            self.drop()
            self._starved += 1  # a job that is too large must not be tried for ever
            yield from Send(failure_reply(request, error, again=self._starved < STARVED_TRIES))
        except (ReplayMismatch, StoreError, RuntimeError, ValueError, ArithmeticError) as error:
            self.drop()
            yield from Send(failure_reply(request, error))
        finally:
            self._settle()
        after = self.state
        if not transition(before, request, after):
            self.drop()
            raise AssertionError(f"no way from {before} to {after} on {request.kind}")

    def save(self) -> Steps[None]:
        """Write a snapshot of the newest step, so that a successor replays only what comes after."""
        if self.attempt is not None:
            yield from self.replica.save(self.attempt)

    def park(self) -> Steps[None]:
        """Save the session, then drop it."""
        yield from self.save()
        self.drop()
        yield from self.replica.let_go_of_writes()

    # requests

    def _dispatch(self, request: m.AnyRequest, raw: Blob) -> Steps[None]:
        match request:
            case m.Open():
                yield from self._open(request)
            case m.Forward() | m.Backward():
                yield from self._step(request, raw)
            case m.Recall():
                yield from self._recall(request)
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

    def _open(self, request: m.Open) -> Steps[None]:
        if not (yield from self._allowed(request, request.digest)):
            return
        job = yield from LoadJob(request.job, request.digest)
        if job is None:
            yield from Send(unknown_job_reply(request, request.digest))
            return
        yield from self._opening.open(request, job)

    def _step(self, request: m.Forward | m.Backward, raw: Blob) -> Steps[None]:
        """Compute a request of the open step and all that waited for it; or let it wait for others."""
        body = yield from self._ready(request)
        if body is None or (yield from self._answer_again(request, body)):
            return
        body.check(request, memoryview(raw).nbytes)
        again = self.replica.takes_again(request.step)
        if self._begins(request, body):
            if not again and (yield from self._held_back(request)):
                return
            if isinstance(request, m.Forward) and not self._reserve(body.step_bytes):
                yield from Send(no_memory_reply(request))
                return
        if isinstance(request, m.Forward) and body.forward_id(request.micro) is not None:
            yield from self._abort()  # the device computed it again, so that all of the step begins again
        if isinstance(request, m.Forward) and self.replica.log_is_full and not again:
            yield from Send(log_full_reply(request, self.replica.log_bytes, self.replica.snapshots.best))
            return
        if not self._arrivals.add(request, raw, body.forwarded, body.returned):
            yield from Send(m.Busy(answers=request.request, retry_after_s=ROOM_RETRY_S, reason=NO_ROOM))
            return
        while (turn := self._arrivals.take(body.forwarded, body.returned)) is not None:
            yield from self._compute(body, *turn)
        if self._arrivals.holds(request.request):
            yield from self._ask_for(request, (request.kind, request.micro), body, news=True)

    def _recall(self, request: m.Recall) -> Steps[None]:
        """Serve the FORWARD that a RECALL stands for, or say which of its rows are not kept here.

        What is logged is that FORWARD, whole: a replay needs no rows that are kept.
        """
        body = yield from self._ready(request)
        if body is None or (yield from self._answer_again(request, body)):
            return
        job = body.job
        check_recall(job, request, self._rows.nbytes_of(request, job.digest))
        absent = tuple(self._rows.absent(request, job.digest))
        if absent:
            rows = absent[: m.MAX_RANGES]
            yield from Send(self.replies.missing(request, "FORWARD", request.micro, rows))
            return
        forward = self._rows.forward(request, job.digest)
        raw = encode(forward)
        if not self._may_work(request.device, len(raw)):
            yield from Send(over_quota_reply(request))
            return
        yield from self._step(forward, raw)

    def _compute(self, body: LoadedBody, request: m.Forward | m.Backward, raw: Blob) -> Steps[None]:
        """Compute the request whose turn it is; the step's last one commits it."""
        micro = request.micro
        if isinstance(request, m.Forward):
            if request.best and not (yield from self._keep_best(request, body)):
                return
            yield from self.replica.begin(request)
            yield from self.replica.log(self.live[0], request.step, micro, raw)
            kept = self._rows.keep(request, body.job.digest) if request.keep else None
            result = yield from body.forward(request, kept)
            if not request.targets:
                yield from Send(self.replies.forwarded(body, request))
                return
        elif body.forward_id(micro) != request.forward:
            yield from Send(self.replies.missing(request, "FORWARD", micro))
            return
        else:
            body.check(request, memoryview(raw).nbytes)
            yield from self.replica.log(self.live[0], request.step, body.micros + micro, raw)
            result = yield from body.backward(request)
        if result is None:
            yield from Send(self.replies.early_gradient(body, micro))
        else:
            requests = len(result.micros) * (1 if isinstance(request, m.Forward) else 2)
            loss = step_loss(request, body, result)
            yield from self._commit(request, result, requests=requests, loss=loss)

    def _keep_best(self, request: m.Forward, body: LoadedBody) -> Steps[bool]:
        """Keep the state before the step, which the device has found the best so far; return whether it is
        kept.

        That happens before the step is committed. A worker that takes over after the commit finds it, and
        before the commit the device says it again.
        """
        if not body.job.spec.evaluation.keep_best or not body.step:
            raise DataError(f"step {body.step} of {request.job} is kept as the best; nothing was evaluated")
        if self.replica.takes_again(request.step):
            return True  # it was kept before the step was committed
        attempt, _ = self.live
        outcome = yield from self.replica.keep(attempt)
        if isinstance(outcome, Done):
            return True
        self.drop()
        if isinstance(outcome, StaleAttempt):
            yield from Send(stale_reply(request, outcome.stored))
        return False

    def _ask(self, request: m.Ask) -> Steps[None]:
        kind = request.about_kind
        if kind == "READY":
            yield from self._ask_for_mean(request)
            return
        body = yield from self._ready(request)
        if body is None or (yield from self._answer_again(request, body)):
            return
        begins = self._begins(request, body) and not self.replica.takes_again(request.step)
        if begins and (yield from self._held_back(request)):
            return
        if body.forward_id(request.micro) not in (None, request.forward):
            yield from Send(self.replies.missing(request, "FORWARD", request.micro))
        else:
            yield from self._ask_for(request, (kind, request.micro), body)

    def _round_done(self, request: m.Ready) -> Steps[None]:
        """Hand in what the device has trained in its round; it goes on from the mean once that is there."""
        body = yield from self._ready(request)
        if body is None:
            return
        if request.step == body.step:
            yield from Send(self._gradients[0])
            return
        if not body.job.spec.fleet.has_rounds:
            raise DataError(f"job {request.job} has no rounds, and READY arrived")
        yield from self._abort()
        self._turns.begin(request)
        yield from self._take_turn(body)

    def _ask_for_mean(self, request: m.Ask) -> Steps[None]:
        body = yield from self._ready(request)
        if body is None:
            return
        waits = self._turns.request
        if request.step == body.step:
            yield from Send(self._gradients[0])
        elif waits is None or waits.request != request.about:
            yield from Send(self.replies.missing(request, "READY", 0))
        else:
            yield from self._take_turn(body)

    def _take_turn(self, body: LoadedBody, *, asked: bool = True) -> Steps[None]:
        """Take the step that goes on from the mean, if the round has ended; else tell the device that has
        asked to wait."""
        request = self._turns.request
        assert request is not None
        if (yield from self._held_back(request)):
            return
        if self.replica.log_is_full:
            yield from Send(log_full_reply(request, self.replica.log_bytes, self.replica.snapshots.best))
            return
        turn = yield from self._turns.take(body, asked=asked)
        if not isinstance(turn, Turn):
            if asked or isinstance(turn, m.Error) or turn.reason == SETTLING:
                yield from Send(turn)  # nobody tells the device that a record has settled: it is told when
            return
        parts = turn.logged(request)
        yield from self.replica.begin(request)
        for index, part in enumerate(parts):
            yield from self.replica.log(self.live[0], request.step, index, part)
        result = yield from body.rebase(request, turn.about, turn.mean, turn.ends)
        yield from self._commit(request, result, requests=len(parts), loss=None)

    def _answer_again(
        self, request: m.Forward | m.Recall | m.Backward | m.Ask, body: LoadedBody
    ) -> Steps[bool]:
        """Repeat the answer to a request (or to what an ASK is about) that was computed; whether it was."""
        micro = request.micro
        if micro >= body.job.spec.micro_batches:
            raise DataError(f"micro-batch {micro}, the job has {body.job.spec.micro_batches}")
        if request.step == body.step:
            if micro >= len(self._gradients):
                raise DataError(f"step {request.step} has no micro-batch {micro}")
            yield from Send(self._gradients[micro])
            return True
        forward = request.request if isinstance(request, m.Forward) else request.forward
        if body.forward_id(micro) != forward:
            return False
        if micro < body.returned:
            yield from Send(self.replies.early_gradient(body, micro))
            return True
        if isinstance(request, m.Forward | m.Recall) or (
            isinstance(request, m.Ask) and request.about_kind == "FORWARD"
        ):
            yield from Send(self.replies.forwarded(body, request))
            return True
        return False

    def _ask_for(
        self, request: m.SessionRequest, place: PartKey, body: LoadedBody, *, news: bool = False
    ) -> Steps[None]:
        """Say what is absent for `place` to be computed."""
        for kind, micro in self._arrivals.absent(place, body.forwarded, body.returned, news=news):
            yield from Send(self.replies.missing(request, kind, micro))

    def _begins(self, request: m.Forward | m.Backward | m.Ask, body: LoadedBody) -> bool:
        """Return whether the request is of a step that was not begun here, or that begins again."""
        forward = request.request if isinstance(request, m.Forward) else request.forward
        return not body.forwarded or body.forward_id(request.micro) not in (None, forward)

    def _held_back(self, request: m.SessionRequest) -> Steps[bool]:
        """Return whether no step may begin now; then the device has been told."""
        if self.paused:
            meta = yield from ReadSession(self.name)
            self.paused = meta is not None and meta.paused
        if self.paused:
            yield from Send(paused_reply(request))
        return self.paused

    def _eval(self, request: m.Eval) -> Steps[None]:
        body = yield from self._ready(request, exact=True)
        if body is not None:
            body.check(request, 0)
            if not self._reserve(body.open_bytes + body.eval_bytes):
                yield from Send(no_memory_reply(request))
                return
            outputs = yield from body.evaluate(request)
            yield from Send(self.replies.evaluated(body, request, outputs))

    def _get_body(self, request: m.GetBody) -> Steps[None]:
        body = yield from self._ready(request, exact=True)
        if body is None:
            return
        if not body.job.spec.share_body:
            yield from Send(body_not_shared_reply(request))
            return
        yield from Send(self.replies.body(body, request, (yield from body.weights())))

    def _close(self, request: m.Close) -> Steps[None]:
        body = yield from self._ready(request, exact=True)
        if body is None:
            return
        attempt, owner = self.live
        yield from self.replica.save(attempt)
        outcome = yield from CloseSession(self.name, attempt, owner)
        if not isinstance(outcome, Done):
            self.drop()
        elif outcome.meta.committed != body.step:
            self.drop()
            yield from Send(reopen_reply(request, f"the store went back to step {outcome.meta.committed}"))
        elif self.replica.durable_step(body.step) < body.step:
            # The device may leave for good after CLOSED: not before the store can't lose the last step.
            yield from Send(m.Busy(answers=request.request, retry_after_s=CLOSE_RETRY_S, reason=NOT_DURABLE))
        else:
            self._rows.forget(self.name)
            yield from Send(self.replies.closed(body, request))

    # may it, and is it here

    def _allowed(self, request: m.Open | m.SessionRequest, digest: str) -> Steps[bool]:
        """Return whether the device may train that version of the job; if not, it has been told."""
        if may_train((yield from ReadAllowed(request.device)), request.job, digest):
            return True
        yield from Send(not_allowed_reply(request, digest))
        return False

    def _ready(self, request: m.SessionRequest, *, exact: bool = False) -> Steps[LoadedBody | None]:
        """Memory at the request's step or the one before, owned under its attempt.

        None: the request was answered, or is so old that nobody waits for an answer.
        """
        replica, attempt = self.replica, attempt_of(request.attempt)
        steps = (0,) if exact else (0, 1)
        fits = (
            replica.body is not None
            and self.attempt == attempt
            and request.step - replica.body.step in steps
            and (request.step != replica.body.step or exact or self._gradients)
        )
        if fits and not replica.doubted:
            return replica.body
        if not fits:
            found = yield from ReadSession(self.name)
            if found is not None and found.attempt == attempt:
                yield from replica.check_environment(found)  # before anything of another's is taken
        outcome = yield from replica.claim(attempt, request.step)
        match outcome:
            case Done(meta=meta):
                if not (yield from self._allowed(request, meta.job_digest)):
                    return None
                if request.step - meta.committed not in steps:
                    yield from Send(reopen_reply(request, f"the session is at step {meta.committed}"))
                    return None
                if fits and replica.trusts_again(meta):
                    return replica.body
                yield from self._load(meta, replay_last=request.step == meta.committed and not exact)
                return replica.body
            case StaleAttempt(stored=stored):
                yield from Send(stale_reply(request, stored))
            case StepBehind(committed=committed) if committed < request.step:
                yield from Send(reopen_reply(request, f"the store is at step {committed}"))
            case StepBehind(committed=committed) if exact:
                yield from Send(behind_reply(request, committed))
            case StepBehind():
                pass  # a late duplicate: the device has moved on
            case UnknownSession():
                yield from Send(reopen_reply(request, "the store does not know the session"))
        return None

    def _load(self, meta: SessionMeta, *, replay_last: bool = False) -> Steps[None]:
        self.drop()
        result = yield from self.replica.load(meta, replay_last=replay_last)
        self.attempt, self.paused = meta.attempt, meta.paused
        if result is not None:
            self._gradients = self.replies.of_step(meta.committed, result)

    def _accept(self, meta: SessionMeta) -> None:
        """Go on under the attempt and the owner that the store has: what was loaded under others goes."""
        if (meta.attempt, meta.owner) != (self.attempt, self.replica.owner):
            self.drop()
        self.replica.owner = meta.owner
        self.attempt, self.paused = meta.attempt, meta.paused

    # the commit

    def _commit(
        self,
        request: m.Forward | m.Backward | m.Ready,
        result: StepResult,
        *,
        requests: int,
        loss: float | None,
    ) -> Steps[None]:
        """Commit the step that the body has taken, reply. Anything but Done throws the body away.

        A step that was committed before is only compared with what it gave then.
        """
        attempt, _ = self.live
        if self.replica.takes_again(request.step):
            self.replica.taken_again(result.digest)
            self._arrivals.clear()
            self._gradients = self.replies.of_step(request.step, result)
            yield from Send(self._gradients[0 if isinstance(request, m.Ready) else request.micro])
            return
        outcome = yield from self.replica.commit(attempt, request.step, result.digest, requests=requests)
        if not isinstance(outcome, Done):
            self.drop()
            if isinstance(outcome, StaleAttempt):
                yield from Send(stale_reply(request, outcome.stored))
            return  # a rival owns the session and serves it: nothing of ours took effect
        self._arrivals.clear()
        self._turns.clear()
        self._starved = 0
        self.paused = outcome.meta.paused
        yield from Committed(self.name, request.step, loss)
        self._gradients = self.replies.of_step(request.step, result)
        yield from Send(self._gradients[0 if isinstance(request, m.Ready) else request.micro])
        yield from self.replica.snapshot_if_due(attempt)

    def _reserve(self, nbytes: int) -> bool:
        """Return whether the session may take so many bytes in all, beside its state."""
        more = max(0, nbytes - self._reserved)
        if not self._budget.take(more):
            return False
        self._reserved += more
        return True

    def _settle(self) -> None:
        """Give back what is not in use any more."""
        body = self.replica.body
        used = body.open_bytes if body is not None else 0
        self._budget.give_back(self._reserved - used)
        self._reserved = used

    def _abort(self) -> Steps[None]:
        self._arrivals.clear()
        yield from self.replica.abort()
