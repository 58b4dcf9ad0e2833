"""One session on a worker: the protocol, without I/O (DESIGN: a step; session state).

`WorkerSession.handle` is a generator: it yields actions (compute, store calls, replies) and is sent
their results, so that a shell can run them over real parts and a simulation inline. Requests are handled
one at a time, in order.

    COLD ──load──▶ READY ──forward──▶ FORWARDED ──commit──▶ READY
     ▲               │                  │   ▲ forward again
     └──── drop ─────┴──────────────────┘   └─┘

The memory of a session is only a cache: whatever leaves its relation to the store in doubt drops it, and
the next request loads it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

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
from server_worker.durability import DurabilityClock
from server_worker.memory import SessionMemory, StepResult, encode_state
from server_worker.reading import read_entry, read_snapshot
from server_worker.replies import error_reply, open_refused, reopen_reply, stale_reply
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
from spliteasy.errors import DataError, ReplayMismatch, StoreError, StoreFull
from spliteasy.training import NotFinite

CLOSE_RETRY_S = 0.5


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
        self._gradient: m.Gradient | None = None
        self._oldest_checkpoint = 0
        self._log_bytes = 0
        self._log_limit = 0
        self._snapshot_step = 0
        self._snapshot_at = clock()
        self._snapshot_running = False
        self._writes: list[Handle] = []
        """Of the open step's requests to the log; the commit waits for them."""

    # what the shell asks

    def memory_bytes(self) -> int:
        """Bytes that this session holds in memory."""
        return self.memory.state_bytes if self.memory is not None else 0

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
        self.memory, self.owner, self.attempt, self._gradient = None, None, None, None

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
            case m.Forward():
                yield from self._forward(request, raw)
            case m.Backward():
                yield from self._backward(request, raw)
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
                restart=request.restart,
            )
        )
        match outcome:
            case Done(meta=meta):
                if meta.attempt != self.attempt or meta.owner != self.owner:
                    self.drop()
                self.attempt, self.owner = meta.attempt, meta.owner
                yield Send(
                    m.Opened(
                        session=self.name,
                        answers=request.request,
                        attempt=request.attempt,
                        fence=meta.owner.fence,
                        step=meta.resume_step,
                        # A late copy of OPEN must not make us forget the commits since.
                        durable_step=min(
                            meta.resume_step, self._durability.durable_step(self.name, meta.committed)
                        ),
                    )
                )
                if self.memory is None:
                    yield from self._load(meta, replay_last=False)
            case refusal:
                yield Send(open_refused(request, refusal))

    def _forward(self, request: m.Forward, raw: Blob) -> Steps:
        memory = yield from self._ready(request)
        if memory is None:
            return
        if request.step == memory.step:
            yield from self._send_gradient()
            return
        if memory.request == request.request:
            yield Send(self._forwarded(memory, request))
            return
        if self._log_bytes > self._log_limit:
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
        self._move(State.FORWARDED)
        self._oldest_checkpoint = request.oldest_checkpoint
        yield from self._let_go_of_writes()
        yield from self._write(request.step, 0, raw)
        yield Compute(lambda: memory.forward(request))
        if request.targets:
            result = yield Compute(memory.backward_from_loss)
            yield from self._commit(request, memory, result, requests=1)
        else:
            yield Send(self._forwarded(memory, request))

    def _backward(self, request: m.Backward, raw: Blob) -> Steps:
        memory = yield from self._ready(request)
        if memory is None:
            return
        if request.step == memory.step:
            yield from self._send_gradient()
        elif memory.request != request.forward:
            yield Send(self._missing(request, "FORWARD"))
        else:
            yield from self._write(request.step, 1, raw)
            result = yield Compute(lambda: memory.backward(request))
            yield from self._commit(request, memory, result, requests=2)

    def _ask(self, request: m.Ask) -> Steps:
        memory = yield from self._ready(request)
        if memory is None:
            return
        if request.step == memory.step:
            yield from self._send_gradient()
        elif memory.request != request.forward:
            yield Send(self._missing(request, "FORWARD"))
        elif request.about_kind == "BACKWARD":
            yield Send(self._missing(request, "BACKWARD"))
        else:
            yield Send(self._forwarded(memory, request))

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
            yield Send(
                m.Busy(
                    answers=request.request,
                    retry_after_s=CLOSE_RETRY_S,
                    reason="waiting until the last step is durable",
                )
            )
        else:
            yield Send(m.Closed(**self._to(request), step=memory.step))

    # ownership and loading

    def _ready(
        self, request: m.SessionRequest, *, exact: bool = False
    ) -> Generator[Action, Result, SessionMemory | None]:
        """Memory at the request's step or the one before, owned under its attempt.

        None: the request was answered, or is so old that nobody waits for an answer.
        """
        steps = (0,) if exact else (0, 1)
        if (
            self.memory is not None
            and self.attempt == _attempt(request.attempt)
            and request.step - self.memory.step in steps
            and (request.step != self.memory.step or exact or self._gradient is not None)
        ):
            return self.memory
        outcome = yield StoreCall(
            lambda s: s.claim(
                self.name, attempt=_attempt(request.attempt), step=request.step, worker=self._identity.nonce
            )
        )
        match outcome:
            case Done(meta=meta):
                if request.step - meta.committed not in steps:
                    yield Send(reopen_reply(request, f"the session is at step {meta.committed}"))
                    return None
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
        self.attempt, self.owner = meta.attempt, meta.owner
        self._log_bytes, self._log_limit = meta.log_bytes, job.spec.durability.log_max_bytes
        for step in range(base + 1, meta.committed + 1):
            entry = yield StoreCall(lambda s, step=step: read_entry(s, self.name, step))  # type: ignore[misc]
            answered, result = yield Compute(lambda entry=entry: memory.replay(entry))  # type: ignore[misc]
            if step == meta.committed:
                self._gradient = self._gradient_reply(step, answered, result)
        self.memory = memory
        self._snapshot_step, self._snapshot_at = base, self._clock()
        self.snapshots_kept = len(meta.snapshots)
        self._move(State.READY)
        yield Loaded(self.name, meta.committed, meta.committed - base)

    # the commit

    def _commit(
        self, request: m.Forward | m.Backward, memory: SessionMemory, result: StepResult, *, requests: int
    ) -> Steps:
        """Commit the step that memory has taken, reply. Anything but Done throws the memory away."""
        attempt, owner = self._ownership()
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
        self._log_bytes, self.snapshots_kept = outcome.meta.log_bytes, len(outcome.meta.snapshots)
        yield Committed(self.name, request.step)
        self._gradient = self._gradient_reply(request.step, request.request, result)
        yield Send(self._gradient)
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
        fields = {**self._to(request), "answers": memory.request}
        return m.Forwarded(**fields, step=request.step, micro=request.micro, **m.carried(memory.outputs))

    def _missing(self, request: m.Backward | m.Ask, kind: Literal["FORWARD", "BACKWARD"]) -> m.Missing:
        return m.Missing(**self._to(request), step=request.step, missing=kind)

    def _gradient_reply(self, step: int, answered: str, result: StepResult) -> m.Gradient:
        attempt, owner = self._ownership()
        return m.Gradient(
            session=self.name,
            answers=answered,
            attempt=m.AttemptRef(number=attempt.number, nonce=attempt.nonce),
            fence=owner.fence,
            step=step,
            durable_step=self._durability.durable_step(self.name, step),
            loss=result.loss,
            skipped=result.skipped,
            **m.carried(result.gradients),
            checkpoint=self._log_bytes > self._log_limit // 2,
        )

    def _send_gradient(self) -> Steps:
        assert self._gradient is not None
        yield Send(self._gradient)


def _attempt(ref: m.AttemptRef) -> Attempt:
    return Attempt(number=ref.number, nonce=ref.nonce)
