"""One session on a worker: the protocol, without I/O (DESIGN: a step; session state).

`WorkerSession.handle` is a generator: it yields actions (compute, store calls, replies) and is sent
their results, so that a shell can run them over real parts and a simulation inline. Requests are handled
one at a time, in order.

    COLD ──load──▶ READY ──forward──▶ FORWARDED ──commit──▶ READY
     ▲               │                  │   ▲ forward of the next micro-batch, or of the first again
     └──── drop ─────┴──────────────────┘   └─┘

A step's micro-batches are computed in order, whatever the order of arrival (`arrivals.py`): so gradients
add up, and running statistics move, always the same way.

The memory of a session is only a cache: whatever leaves its relation to the store in doubt drops it, and
the next request loads it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from broker import messages as m
from server_worker.actions import (
    Action,
    Background,
    Begin,
    Committed,
    Compute,
    Finish,
    Handle,
    Loaded,
    LoadJob,
    Result,
    Send,
    Steps,
    StoreCall,
)
from server_worker.allowing import may_train
from server_worker.arrivals import Arrivals, Kind, Place, Room
from server_worker.durability import DurabilityClock
from server_worker.memory import MicroResult, SessionMemory, StepResult, encode_state
from server_worker.reading import read_entries, read_snapshot
from server_worker.replies import (
    NO_ROOM,
    NOT_DURABLE,
    error_reply,
    not_allowed_reply,
    open_refused,
    paused_reply,
    reopen_reply,
    stale_reply,
)
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
from spliteasy.errors import DataError, OutOfMemory, ReplayMismatch, StoreError, StoreFull
from spliteasy.micro_batches import micro_sizes, share_of
from spliteasy.training import NotFinite

CLOSE_RETRY_S = 0.5
ROOM_RETRY_S = 1.0
STARVED_TRIES = 60
"""So often, without a step in between, a session's requests find no memory before they are given up: a minute
or more, as a device tries again after a second."""


class State(Enum):
    """Where a session's memory is."""

    COLD = "cold"
    READY = "ready"
    FORWARDED = "forwarded"


_EDGES = {
    (State.COLD, State.READY),
    (State.READY, State.FORWARDED),
    (State.FORWARDED, State.FORWARDED),
    (State.FORWARDED, State.READY),
    *((state, State.COLD) for state in State),
}


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who computes: `nonce` is the owner nonce of all its sessions, `environment` what decides the bits."""

    nonce: str
    environment: str


class WorkerSession:
    """The protocol of one session on one worker."""

    def __init__(
        self,
        name: str,
        identity: WorkerIdentity,
        *,
        durability: DurabilityClock,
        room: Room,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.state = State.COLD
        self.owner: Owner | None = None
        self.attempt: Attempt | None = None
        self.memory: SessionMemory | None = None
        self.snapshots_kept = 0
        """Snapshots of it in the store, when it was last loaded or committed."""
        self._identity = identity
        self._durability = durability
        self._clock = clock
        self._gradients: tuple[m.Gradient, ...] = ()
        """The replies of the committed step, by micro-batch."""
        self._arrivals = Arrivals(room)
        self._paused = False
        """As the store said last: with each commit, load and open."""
        self._oldest_checkpoint = 0
        self._log_bytes = 0
        self._log_limit = 0
        self._snapshot_step = 0
        self._snapshot_at = clock()
        self._snapshot_running = False
        self._doubted = False
        self._starved = 0
        """Requests that found no memory since the last commit."""
        self._writes: list[Handle] = []
        """Of the open step's requests to the log; the commit waits for them."""

    # what the shell asks

    def memory_bytes(self) -> int:
        """Bytes that this session holds in memory."""
        return (self.memory.state_bytes if self.memory is not None else 0) + self._arrivals.nbytes

    def knows(self, request: str) -> bool:
        """Whether the open step was computed from that request, or the request waits for its turn in it."""
        return self._arrivals.holds(request) or (self.memory is not None and self.memory.knows(request))

    @property
    def log_bytes(self) -> int:
        """Bytes of its log in the store, after the last commit."""
        return self._log_bytes

    @property
    def log_fill(self) -> float:
        """How much of the log's limit is used."""
        return self._log_bytes / self._log_limit if self._log_limit else 0.0

    def drop(self) -> None:
        """Throw the memory away; the store has everything."""
        self._move(State.COLD)
        self.memory, self.owner, self.attempt, self._gradients = None, None, None, ()
        self._doubted = False
        self._arrivals.clear()

    def doubt(self) -> None:
        """Another worker may have served the session meanwhile: ask the store before the memory is used.

        A commit on top of it would be refused without a word, and the device wait for its deadline.
        """
        self._doubted = True

    def handle(self, request: m.AnyRequest, raw: Blob) -> Steps:
        """Serve one request; `raw` is the request as received, for the log. Never raises for a bad one."""
        try:
            yield from self._dispatch(request, raw)
        except DataError as error:
            self._abort()
            yield Send(error_reply(request, "bad-tensor", error.message, error.hint))
        except NotFinite:
            self._abort()
            yield Send(
                error_reply(
                    request,
                    "not-finite",
                    "a gradient of the body is NaN or infinite",
                    "lower the learning rate, or clip the gradients ([clip] max_norm)",
                )
            )
        except ReplayMismatch as error:
            self.drop()
            yield Send(error_reply(request, "replay-mismatch", error.message, error.hint))
        except StoreFull as error:
            self.drop()
            yield Send(error_reply(request, "store-full", error.message, error.hint, retriable=True))
        except StoreError as error:
            self.drop()
            yield Send(error_reply(request, "unavailable", error.message, error.hint, retriable=True))
        except OutOfMemory as error:
            self.drop()
            self._starved += 1
            again = self._starved < STARVED_TRIES  # a job that is too large must not be tried for ever
            code: m.ErrorCode = "unavailable" if again else "computation-failed"
            yield Send(
                error_reply(request, code, f"the worker has {error.message}", error.hint, retriable=again)
            )
        except (RuntimeError, ValueError, ArithmeticError) as error:
            self.drop()
            yield Send(error_reply(request, "computation-failed", f"{type(error).__name__}: {error}"))

    def save(self) -> Steps:
        """Write a snapshot of the newest step, so that whoever takes over replays only what comes after."""
        if self.memory is not None and self.memory.step > self._snapshot_step:
            yield from self._snapshot_now()

    def park(self) -> Steps:
        """Save, then drop."""
        yield from self.save()
        self.drop()
        yield from self._let_go_of_writes()

    # requests

    def _dispatch(self, request: m.AnyRequest, raw: Blob) -> Steps:
        match request:
            case m.Open():
                yield from self._open(request)
            case m.Forward() | m.Backward():
                yield from self._step(request, raw)
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
            yield Send(
                error_reply(
                    request,
                    "unknown-job",
                    f"there is no job {request.job}@{request.digest[:12]}",
                    "submit it with `spliteasy submit`",
                )
            )
            return
        outcome = yield StoreCall(
            lambda s: s.open_session(
                self.name,
                job_digest=request.digest,
                attempt=_attempt(request.attempt),
                held=request.held,
                worker=self._identity.nonce,
                environment=self._identity.environment,
                agent=request.agent or "",
                total_steps=request.total_steps or 0,
                restart=request.restart,
            )
        )
        match outcome:
            case Done(meta=meta):
                if meta.attempt != self.attempt or meta.owner != self.owner:
                    self.drop()
                self.attempt, self.owner, self._paused = meta.attempt, meta.owner, meta.paused
                # A late copy of OPEN must not make us forget the commits since.
                durable_step = min(meta.resume_step, self._durability.durable_step(self.name, meta.committed))
                if self.memory is None:
                    # Before the answer: what can't be loaded is refused, not opened and then refused.
                    yield from self._load(meta, replay_last=False)
                yield Send(
                    m.Opened(
                        session=self.name,
                        answers=request.request,
                        attempt=request.attempt,
                        fence=meta.owner.fence,
                        step=meta.resume_step,
                        durable_step=durable_step,
                    )
                )
            case refusal:
                yield Send(open_refused(request, refusal))

    def _step(self, request: m.Forward | m.Backward, raw: Blob) -> Steps:
        """Compute a request of the open step and all that waited for it; or let it wait for others."""
        memory = yield from self._ready(request)
        if memory is None or (yield from self._answer_again(request, memory)):
            return
        if self._begins(request, memory) and (yield from self._held_back(request)):
            return
        if isinstance(request, m.Forward) and memory.forward_id(request.micro) is not None:
            self._abort()  # the device computed it anew: all begins anew
        if isinstance(request, m.Forward) and self._log_bytes > self._log_limit:
            yield Send(
                error_reply(
                    request,
                    "log-full",
                    f"the log holds {self._log_bytes} bytes, since the device's oldest checkpoint is step "
                    f"{request.oldest_checkpoint}",
                    "submit the job with a larger durability.log_max_bytes, or with fewer checkpoints kept",
                )
            )
            return
        if not self._arrivals.add(request, raw, memory.forwarded, memory.returned):
            yield Send(m.Busy(answers=request.request, retry_after_s=ROOM_RETRY_S, reason=NO_ROOM))
            return
        while (turn := self._arrivals.take(memory.forwarded, memory.returned)) is not None:
            yield from self._compute(memory, *turn)
        if self._arrivals.holds(request.request):
            yield from self._ask_for(request, (request.kind, request.micro), memory, news=True)

    def _compute(self, memory: SessionMemory, request: m.Forward | m.Backward, raw: Blob) -> Steps:
        """Compute the request whose turn it is; the step's last one commits it."""
        micro = request.micro
        result: StepResult | None = None
        if isinstance(request, m.Forward):
            self._move(State.FORWARDED)
            if micro == 0:
                self._oldest_checkpoint = request.oldest_checkpoint
                yield from self._let_go_of_writes()
            yield from self._write(request.step, micro, raw)
            yield Compute(lambda: memory.forward(request))
            if not request.targets:
                yield Send(self._forwarded(memory, request))
                return
            result = yield Compute(memory.backward_from_loss)
        elif memory.forward_id(micro) != request.forward:
            yield Send(self._missing(request, "FORWARD", micro))
            return
        else:
            yield from self._write(request.step, memory.micros + micro, raw)
            result = yield Compute(lambda: memory.backward(request))
        if result is None:
            yield Send(self._early_gradient(memory, micro))
        else:
            yield from self._commit(request, memory, result)

    def _ask(self, request: m.Ask) -> Steps:
        memory = yield from self._ready(request)
        if memory is None or (yield from self._answer_again(request, memory)):
            return
        if self._begins(request, memory) and (yield from self._held_back(request)):
            return
        if memory.forward_id(request.micro) not in (None, request.forward):
            yield Send(self._missing(request, "FORWARD", request.micro))
        else:
            yield from self._ask_for(request, (request.about_kind, request.micro), memory)

    def _answer_again(
        self, request: m.Forward | m.Backward | m.Ask, memory: SessionMemory
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
            yield Send(self._early_gradient(memory, micro))
            return True
        if isinstance(request, m.Forward) or (isinstance(request, m.Ask) and request.about_kind == "FORWARD"):
            yield Send(self._forwarded(memory, request))
            return True
        return False

    def _ask_for(
        self, request: m.SessionRequest, place: Place, memory: SessionMemory, *, news: bool = False
    ) -> Steps:
        """Say what is absent for `place` to be computed."""
        for kind, micro in self._arrivals.absent(place, memory.forwarded, memory.returned, news=news):
            yield Send(self._missing(request, kind, micro))

    def _begins(self, request: m.Forward | m.Backward | m.Ask, memory: SessionMemory) -> bool:
        """Whether the request is of a step of which nothing was computed here, or which begins anew."""
        forward = request.request if isinstance(request, m.Forward) else request.forward
        return not memory.forwarded or memory.forward_id(request.micro) not in (None, forward)

    def _held_back(self, request: m.SessionRequest) -> Generator[Action, Result, bool]:
        """Whether no step may begin now; the device was told so then."""
        if self._paused:
            meta = yield StoreCall(lambda s: s.session(self.name))
            self._paused = meta is not None and meta.paused
        if self._paused:
            yield Send(paused_reply(request))
        return self._paused

    def _eval(self, request: m.Eval) -> Steps:
        memory = yield from self._ready(request, exact=True)
        if memory is not None:
            outputs = yield Compute(lambda: memory.evaluate(request))
            yield Send(m.Evaluated(**self._to(request), step=memory.step, **m.carried(outputs)))

    def _get_body(self, request: m.GetBody) -> Steps:
        memory = yield from self._ready(request, exact=True)
        if memory is None:
            return
        if not memory.job.spec.share_body:
            yield Send(
                error_reply(
                    request,
                    "not-allowed",
                    f"job {request.job} does not let devices fetch the body",
                    "submit it with `share_body = true`",
                )
            )
            return
        tensors = yield Compute(
            lambda: {name: tensor.clone() for name, tensor in memory.trainer.segment.state_dict().items()}
        )
        yield Send(
            m.Body(
                **self._to(request), step=memory.step, names=tuple(tensors), values=tuple(tensors.values())
            )
        )

    def _close(self, request: m.Close) -> Steps:
        memory = yield from self._ready(request, exact=True)
        if memory is None:
            return
        if memory.step > self._snapshot_step:
            yield from self._snapshot_now()
        attempt, owner = self._ownership()
        outcome = yield StoreCall(lambda s: s.close_session(self.name, attempt=attempt, owner=owner))
        if not isinstance(outcome, Done):
            self.drop()
        elif outcome.meta.committed != memory.step:
            self.drop()
            yield Send(reopen_reply(request, f"the store went back to step {outcome.meta.committed}"))
        elif self._durability.durable_step(self.name, memory.step) < memory.step:
            # The device may leave for good after CLOSED: not before the store can't lose the last step.
            yield Send(m.Busy(answers=request.request, retry_after_s=CLOSE_RETRY_S, reason=NOT_DURABLE))
        else:
            yield Send(m.Closed(**self._to(request), step=memory.step))

    # ownership and loading

    def _allowed(self, request: m.Open | m.SessionRequest, digest: str) -> Generator[Action, Result, bool]:
        """Whether the device may train that version of the job; it was told so where it may not."""
        allowed = yield StoreCall(lambda s: s.allowed([request.device]))
        if may_train(allowed.get(request.device), request.job, digest):
            return True
        yield Send(not_allowed_reply(request, digest))
        return False

    def _ready(
        self, request: m.SessionRequest, *, exact: bool = False
    ) -> Generator[Action, Result, SessionMemory | None]:
        """Memory at the request's step or the one before, owned under its attempt.

        None: the request was answered, or is so old that nobody waits for an answer.
        """
        steps = (0,) if exact else (0, 1)
        fits = (
            self.memory is not None
            and self.attempt == _attempt(request.attempt)
            and request.step - self.memory.step in steps
            and (request.step != self.memory.step or exact or self._gradients)
        )
        if fits and not self._doubted:
            return self.memory
        outcome = yield StoreCall(
            lambda s: s.claim(
                self.name, attempt=_attempt(request.attempt), step=request.step, worker=self._identity.nonce
            )
        )
        match outcome:
            case Done(meta=meta):
                if not (yield from self._allowed(request, meta.job_digest)):
                    return None
                if request.step - meta.committed not in steps:
                    yield Send(reopen_reply(request, f"the session is at step {meta.committed}"))
                    return None
                if fits and self.memory is not None and self._is_of(meta):
                    self._doubted = False
                    return self.memory
                yield from self._load(meta, replay_last=request.step == meta.committed and not exact)
                return self.memory
            case StaleAttempt(stored=stored):
                yield Send(stale_reply(request, stored))
            case StepBehind(committed=committed) if committed < request.step:
                yield Send(reopen_reply(request, f"the store is at step {committed}"))
            case StepBehind():
                pass  # a late duplicate: the device has moved on
            case UnknownSession():
                yield Send(reopen_reply(request, "the store does not know the session"))
        return None

    def _is_of(self, meta: SessionMeta) -> bool:
        """Whether nobody else owned the session since the memory was built."""
        assert self.memory is not None
        return meta.owner == self.owner and meta.committed == self.memory.step

    def _load(self, meta: SessionMeta, *, replay_last: bool) -> Steps:
        """Build the memory from the newest snapshot and the log after it.

        `replay_last`: take the committed step again even where a snapshot has it, for its GRADIENT.
        """
        self.drop()
        self._durability.loaded(self.name, meta.committed)
        job = yield LoadJob(self.name.partition(".")[0], meta.job_digest)
        if job is None:
            raise StoreError(f"the store has session {self.name} but not its job {meta.job_digest[:12]}")
        newest = meta.committed - 1 if replay_last and meta.committed else meta.committed
        base = max((step for step in meta.snapshots if step <= newest), default=max(meta.snapshots))
        blobs = yield StoreCall(lambda s: read_snapshot(s, self.name, base))
        memory: SessionMemory = yield Compute(lambda: SessionMemory(job, self.name))
        yield Compute(lambda: memory.restore(blobs, base))
        self.attempt, self.owner, self._paused = meta.attempt, meta.owner, meta.paused
        self._log_bytes, self._log_limit = meta.log_bytes, job.spec.durability.log_max_bytes
        yield from self._replay(memory, base, meta.committed)
        self.memory = memory
        self._snapshot_step, self._snapshot_at = base, self._clock()
        self.snapshots_kept = len(meta.snapshots)
        self._move(State.READY)
        yield Loaded(self.name, meta.committed, meta.committed - base)

    def _replay(self, memory: SessionMemory, base: int, upto: int) -> Steps:
        """Take the logged steps after `base` again; one batch is read while the one before is computed."""

        def begin(after: int) -> Begin:
            return Begin(lambda s: read_entries(s, self.name, after=after, upto=upto))

        ahead = (yield begin(base)) if base < upto else None
        while ahead is not None:
            entries = yield Finish(ahead)
            done = entries[-1].step
            ahead = (yield begin(done)) if done < upto else None
            result: StepResult = yield Compute(lambda entries=entries: memory.replay_all(entries))  # type: ignore[misc]
            if done == upto:
                self._gradients = self._gradient_replies(upto, result)

    # the commit

    def _commit(self, request: m.Forward | m.Backward, memory: SessionMemory, result: StepResult) -> Steps:
        """Commit the step that memory has taken, reply. Anything but Done throws the memory away."""
        attempt, owner = self._ownership()
        requests = len(result.micros) * (1 if isinstance(request, m.Forward) else 2)
        for write in self._writes:
            yield Finish(write)
        outcome = yield StoreCall(
            lambda s: s.commit(
                self.name,
                attempt=attempt,
                owner=owner,
                step=request.step,
                requests=requests,
                gradient_digest=result.digest,
                oldest_checkpoint=self._oldest_checkpoint,
            )
        )
        if not isinstance(outcome, Done):
            self.drop()
            if isinstance(outcome, StaleAttempt):
                yield Send(stale_reply(request, outcome.stored))
            return  # a rival owns the session and serves it: nothing of ours took effect
        self._move(State.READY)
        self._arrivals.clear()
        self._starved = 0
        self._log_bytes, self.snapshots_kept = outcome.meta.log_bytes, len(outcome.meta.snapshots)
        self._paused = outcome.meta.paused
        yield Committed(self.name, request.step, _loss(request, memory, result))
        self._gradients = self._gradient_replies(request.step, result)
        yield Send(self._gradients[request.micro])
        yield from self._snapshot_if_due(memory)

    def _snapshot_if_due(self, memory: SessionMemory) -> Steps:
        durability = memory.job.spec.durability
        due = (
            memory.step - self._snapshot_step >= durability.snapshot_every_steps
            or self._clock() - self._snapshot_at >= durability.snapshot_every_s
            or self._log_bytes > self._log_limit // 2
        )
        if not due or self._snapshot_running:
            return
        step, (attempt, owner) = memory.step, self._ownership()
        tensors = yield Compute(lambda: encode_state(memory.snapshot()))
        self._snapshot_running = True
        self._snapshot_step, self._snapshot_at = step, self._clock()

        def done(outcome: Result | None) -> None:
            self._snapshot_running = False

        yield Background(
            lambda s: s.put_snapshot(self.name, attempt=attempt, owner=owner, step=step, tensors=tensors),
            done,
        )

    def _snapshot_now(self) -> Steps:
        assert self.memory is not None
        memory, (attempt, owner) = self.memory, self._ownership()
        tensors = yield Compute(lambda: encode_state(memory.snapshot()))
        outcome = yield StoreCall(
            lambda s: s.put_snapshot(
                self.name, attempt=attempt, owner=owner, step=memory.step, tensors=tensors
            )
        )
        if isinstance(outcome, Done):
            self._snapshot_step, self._snapshot_at = memory.step, self._clock()

    # small parts

    def _write(self, step: int, index: int, raw: Blob) -> Steps:
        """Begin to write a request's bytes to the log, while it is computed and answered."""
        attempt, owner = self._ownership()
        write = yield Begin(
            lambda s: s.put_request(self.name, attempt=attempt, owner=owner, step=step, index=index, body=raw)
        )
        self._writes.append(write)

    def _let_go_of_writes(self) -> Steps:
        """Wait for writes of a step that was given up: none may come in between those of the next try."""
        writes, self._writes = self._writes, []
        for write in writes:
            with suppress(StoreError):
                yield Finish(write)

    def _ownership(self) -> tuple[Attempt, Owner]:
        assert self.attempt is not None
        assert self.owner is not None
        return self.attempt, self.owner

    def _abort(self) -> None:
        self._arrivals.clear()
        if self.memory is not None and self.state is State.FORWARDED:
            self.memory.abort()
            self._move(State.READY)

    def _move(self, to: State) -> None:
        if (self.state, to) not in _EDGES:
            raise AssertionError(f"session {self.name}: no way from {self.state} to {to}")
        self.state = to

    # replies

    def _to(self, request: m.SessionRequest) -> dict[str, Any]:
        """The fields that every reply within the attempt has."""
        return {
            "session": self.name,
            "answers": request.request,
            "attempt": request.attempt,
            "fence": self._ownership()[1].fence,
        }

    def _forwarded(self, memory: SessionMemory, request: m.Forward | m.Ask) -> m.Forwarded:
        fields = {**self._to(request), "answers": memory.forward_id(request.micro)}
        outputs = m.carried(memory.outputs(request.micro))
        return m.Forwarded(**fields, step=request.step, micro=request.micro, **outputs)

    def _missing(self, request: m.SessionRequest, kind: Kind, micro: int) -> m.Missing:
        return m.Missing(**self._to(request), step=request.step, micro=micro or None, missing=kind)

    def _gradient_replies(self, step: int, result: StepResult) -> tuple[m.Gradient, ...]:
        durable_step = self._durability.durable_step(self.name, step)
        return tuple(
            self._gradient_reply(step, micro, each, durable_step=durable_step, skipped=result.skipped)
            for micro, each in enumerate(result.micros)
        )

    def _early_gradient(self, memory: SessionMemory, micro: int) -> m.Gradient:
        """Of a micro-batch of the open step, ahead of the commit.

        It promises nothing as durable: only a commit shows that the store has not gone back meanwhile.
        """
        return self._gradient_reply(memory.step + 1, micro, memory.result(micro), durable_step=0)

    def _gradient_reply(
        self, step: int, micro: int, result: MicroResult, *, durable_step: int, skipped: bool = False
    ) -> m.Gradient:
        attempt, owner = self._ownership()
        return m.Gradient(
            session=self.name,
            answers=result.answers,
            attempt=m.AttemptRef(number=attempt.number, nonce=attempt.nonce),
            fence=owner.fence,
            step=step,
            micro=micro or None,
            durable_step=durable_step,
            loss=result.loss,
            skipped=skipped,
            **m.carried(result.gradients),
            checkpoint=self._log_bytes > self._log_limit // 2,
        )


def _loss(request: m.Forward | m.Backward, memory: SessionMemory, result: StepResult) -> float | None:
    """The step's loss: computed here, or told by the device where the job lets it; None where it passed."""
    spec = memory.job.spec
    if result.skipped:
        return None
    if isinstance(request, m.Backward):
        return request.loss if spec.share_loss else None
    batch = request.batch or request.samples
    sizes = micro_sizes(batch, spec.micro_batches)
    losses = zip(result.micros, sizes, strict=True)
    return sum((each.loss or 0.0) * share_of(size, batch) for each, size in losses)


def _attempt(ref: m.AttemptRef) -> Attempt:
    return Attempt(number=ref.number, nonce=ref.nonce)
