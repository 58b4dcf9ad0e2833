"""One replica on a worker: claimed, loaded, logged, committed, given up. Without I/O.

A replica is what is trained: a body with its optimizer, its log, its snapshots and its owner. Its members
are those who train it: each is a session, with an attempt of its own, which it names with every write. The
replica of a personal training has one member, and that session's name.

    COLD ──load──▶ READY ──begin──▶ FORWARDED ──commit──▶ READY
     ▲               │                │   ▲ forward of the next micro-batch, or of the first again
     └──── drop ─────┴────────────────┘   └─┘

What is loaded of a replica is only a cache: whatever leaves its relation to the store in doubt drops it, and
the next request loads it again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from broker.protocol import messages as m
from server_worker.action import Steps
from server_worker.engine.base import Probe
from server_worker.engine.probe import alike
from server_worker.replica import kept_state
from server_worker.replica.actions import Loaded, LoadJob
from server_worker.replica.durability import DurabilityClock
from server_worker.replica.kept_state import holds_state, pack_state
from server_worker.replica.loaded_body import LoadedBody, StepResult, open_body
from server_worker.replica.snapshots import Snapshots
from server_worker.store import Attempt, Blob, ClaimOutcome, CommitOutcome, Done, LogEntry, Owner, SessionMeta
from server_worker.store.calls import (
    Begin,
    ClaimSession,
    CommitStep,
    Finish,
    Handle,
    PutRequest,
    ReadEntries,
    ReadSnapshot,
)
from spliteasy.errors import StoreError, UnlikeWorker

FEW_BEST, MOST_BEST = 2, 64
"""The number of snapshots that are kept as the best since the device's oldest checkpoint: beyond the first
limit the device is asked for a checkpoint, and beyond the second no step begins."""


class BodyState(Enum):
    """The place of a replica's body."""

    COLD = "cold"
    READY = "ready"
    FORWARDED = "forwarded"


_EDGES = {
    (BodyState.COLD, BodyState.READY),
    (BodyState.READY, BodyState.FORWARDED),
    (BodyState.FORWARDED, BodyState.FORWARDED),
    (BodyState.FORWARDED, BodyState.READY),
    *((state, BodyState.COLD) for state in BodyState),
}


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """The identity of a worker that computes: `nonce` is the owner nonce of all its replicas."""

    nonce: str


class Replica:
    """One replica as one worker has it: its body, and what the store said last."""

    def __init__(
        self,
        name: str,
        identity: WorkerIdentity,
        *,
        job: str,
        device: str,
        durability: DurabilityClock,
        clock: Callable[[], float],
    ) -> None:
        """`device`: the one whose random numbers the body's layers draw."""
        self.name = name
        self.job = job
        """The name of the job that it trains."""
        self._device = device
        self.identity = identity
        self.state = BodyState.COLD
        self.owner: Owner | None = None
        self.body: LoadedBody | None = None
        self.snapshots = Snapshots(name, clock)
        self.log_bytes = 0
        """The size in bytes of its log in the store, after the last commit."""
        self.doubted = False
        """Another worker may have owned it meanwhile: ask the store before the body is used."""
        self._durability = durability
        self._log_limit = 0
        self._oldest_checkpoint = 0
        """The oldest checkpoint of the member's device, when the open step began."""
        self._step_bytes = 0
        """The size in bytes of the open step's requests."""
        self._keeps_state = False
        """The open step's commit will write the state, and not its requests."""
        self._again: tuple[int, str] | None = None
        """A committed step that is taken again for its gradients alone, and its digest in the log."""
        self._writes: list[Handle[None]] = []
        """The writes of the open step's requests to the log; the commit waits for them."""

    @property
    def live_owner(self) -> Owner:
        """The owner that every write names. Only where a session of it was opened, or it was loaded."""
        assert self.owner is not None
        return self.owner

    @property
    def log_fill(self) -> float:
        """The share of the log's limit that is used."""
        return self.log_bytes / self._log_limit if self._log_limit else 0.0

    @property
    def log_is_full(self) -> bool:
        return self.log_bytes > self._log_limit or self.snapshots.best > MOST_BEST

    @property
    def log_is_long(self) -> bool:
        """Return whether to cut it: a snapshot of this step and a checkpoint of the device let it begin here.

        It is cut past half of its limit, or where so much was logged since the last snapshot that one
        costs little.
        """
        assert self.body is not None
        return self.log_bytes > self._log_limit // 2 or self.snapshots.are_cheap(self.body.state_bytes)

    @property
    def wants_checkpoint(self) -> bool:
        """Return whether a newer checkpoint of the device would let much go: log, or snapshots that are kept
        as the best, each in its time, of which one will be needed.
        """
        return self.log_is_long or self.snapshots.best > FEW_BEST

    def durable_step(self, committed: int) -> int:
        """The newest step ≤ `committed` that the store can't lose any more."""
        return self._durability.durable_step(self.name, committed)

    # the body

    def check_environment(self, meta: SessionMeta) -> Steps[str | None]:
        """Return what computed the steps so far, if that was unlike this machine and the job tolerates it.

        Raises UnlikeWorker where the job does not.
        """
        job = yield from LoadJob(self.job, meta.job_digest)
        if job is None or not meta.committed:
            return None
        own = yield from Probe(job)
        if alike(meta.environment, own):
            return None
        if job.spec.durability.exactness == "bits":
            raise UnlikeWorker(self.name, stored=meta.environment, own=own)
        return meta.environment

    def claim(self, attempt: Attempt, step: int) -> Steps[ClaimOutcome]:
        """Ask the store for the replica, to serve a member's request of `step`."""
        return (yield from ClaimSession(self.name, attempt, step, self.identity.nonce))

    def trusts_again(self, meta: SessionMeta) -> bool:
        """Return whether nobody else owned it since the body was loaded; then that is in doubt no more."""
        assert self.body is not None
        if meta.owner != self.owner or meta.committed != self.body.step:
            return False
        self.doubted = False
        return True

    def load(self, meta: SessionMeta, *, replay_last: bool) -> Steps[StepResult | None]:
        """Load the body from the newest snapshot and the log after it; what the last replayed step gave.

        `replay_last`: take the committed step again even where a snapshot has it, for its GRADIENT.
        """
        self._durability.loaded(self.name, meta.committed)
        job = yield from LoadJob(self.job, meta.job_digest)
        if job is None:
            raise StoreError(f"the store has session {self.name} but not its job {meta.job_digest[:12]}")
        newest = meta.committed - 1 if replay_last and meta.committed else meta.committed
        unlike = yield from self.check_environment(meta)
        base = max((step for step in meta.snapshots if step <= newest), default=max(meta.snapshots))
        body = yield from open_body(job, self.name, self._device)
        self.owner = meta.owner
        self.log_bytes, self._log_limit = meta.log_bytes, job.spec.durability.log_max_bytes
        upto = meta.committed
        if base < upto and holds_state(last := (yield from self._last_entry(upto))):
            if replay_last:  # the state gives no gradients: the step is taken again, on the one before it
                self._again = upto, last.gradient_digest
                upto -= 1
                if base < upto:
                    last = yield from self._last_entry(upto)
            if body.step != upto and holds_state(last) and last.step == upto:
                yield from body.keep_state(last)
        result: StepResult | None = None
        if body.step != upto or not upto:
            yield from body.restore((yield from ReadSnapshot(self.name, base)), base)
            result = yield from self._replay(body, base, upto)
        replayed = upto - base if result is not None else 0
        if self._again is not None:
            result = None  # it would be of the step before
        self.body = body
        self.snapshots.loaded(base, kept=len(meta.stored), best=len(meta.best), logged_bytes=meta.log_bytes)
        self._move(BodyState.READY)
        yield from Loaded(self.name, upto, replayed, unlike)
        return result

    def _last_entry(self, step: int) -> Steps[LogEntry]:
        """The log's entry of that step."""
        (entry,) = yield from ReadEntries(self.name, step - 1, step)
        return entry

    def _replay(self, body: LoadedBody, base: int, upto: int) -> Steps[StepResult | None]:
        """Take the logged steps after `base` again; one batch is read while the one before is computed."""
        result: StepResult | None = None
        ahead = (yield from Begin(ReadEntries(self.name, base, upto))) if base < upto else None
        while ahead is not None:
            entries = yield from Finish(ahead)
            done = entries[-1].step
            ahead = (yield from Begin(ReadEntries(self.name, done, upto))) if done < upto else None
            for entry in entries:
                result = yield from body.replay(entry)
        return result

    def drop(self) -> None:
        """Throw the body away; the store has everything."""
        self._move(BodyState.COLD)
        self.body, self.owner, self._again = None, None, None
        self.doubted = False

    def abort(self) -> Steps[None]:
        """Forget the open step."""
        if self.body is not None and self.state is BodyState.FORWARDED:
            yield from self.body.abort()
            self._move(BodyState.READY)

    # the open step

    def begin(self, request: m.Forward | m.Ready) -> Steps[None]:
        """The body is about to open the request's micro-batch; the first one begins the step."""
        self._move(BodyState.FORWARDED)
        if isinstance(request, m.Ready) or request.micro == 0:
            self._oldest_checkpoint, self._step_bytes = request.oldest_checkpoint, 0
            assert self.body is not None
            self._keeps_state = isinstance(request, m.Forward) and kept_state.smaller(
                *self.body.write_bytes(request)
            )
            yield from self.let_go_of_writes()

    def log(self, attempt: Attempt, step: int, index: int, raw: Blob) -> Steps[None]:
        """Begin to write a request's bytes to the log, while it is computed and answered.

        Nothing of a step that was committed before, or whose state will be written instead.
        """
        if self._keeps_state or self._again is not None:
            return
        yield from self._write(attempt, step, index, raw)

    def _write(self, attempt: Attempt, step: int, index: int, raw: Blob) -> Steps[None]:
        self._step_bytes += memoryview(raw).nbytes
        put = PutRequest(self.name, attempt, self.live_owner, step, index, raw)
        self._writes.append((yield from Begin(put)))

    def let_go_of_writes(self) -> Steps[None]:
        """Wait for writes of a step that was given up: none may come in between those of the next try."""
        writes, self._writes = self._writes, []
        for write in writes:
            with suppress(StoreError):
                yield from Finish(write)

    def commit(self, attempt: Attempt, step: int, digest: str, *, requests: int) -> Steps[CommitOutcome]:
        """Make the step that the body has taken: of `requests` requests, `digest` is of its gradients.

        After anything but Done the body is ahead of the store, and has to be dropped.
        """
        if self._keeps_state:
            assert self.body is not None
            yield from self._write(attempt, step, 0, pack_state((yield from self.body.snapshot())))
            requests = 1
        for write in self._writes:
            yield from Finish(write)
        self._writes.clear()
        outcome = yield from CommitStep(
            session=self.name,
            attempt=attempt,
            owner=self.live_owner,
            step=step,
            requests=requests,
            digest=digest,
            oldest_checkpoint=self._oldest_checkpoint,
        )
        if isinstance(outcome, Done):
            self._move(BodyState.READY)
            self.log_bytes = outcome.meta.log_bytes
            after = outcome.meta
            self.snapshots.committed(self._step_bytes, kept=len(after.stored), best=len(after.best))
        return outcome

    def takes_again(self, step: int) -> bool:
        """Return whether that step is committed, and taken again because its GRADIENT was lost."""
        return self._again is not None and self._again[0] == step

    def taken_again(self, digest: str) -> None:
        """Go on after the committed step. Raises ReplayMismatch where it gave other bits this time."""
        assert self.body is not None
        assert self._again is not None
        (step, logged), self._again = self._again, None
        self.body.compare(step, logged=logged, found=digest)
        self._move(BodyState.READY)

    def snapshot_if_due(self, attempt: Attempt) -> Steps[None]:
        """Begin to write a snapshot, where it is time for one."""
        assert self.body is not None
        yield from self.snapshots.write_if_due(
            self.body, (attempt, self.live_owner), log_is_long=self.log_is_long
        )

    def keep(self, attempt: Attempt) -> Steps[CommitOutcome]:
        """Keep the state of the newest step, after which an evaluation was the best so far."""
        assert self.body is not None
        return (yield from self.snapshots.keep(self.body, (attempt, self.live_owner)))

    def save(self, attempt: Attempt) -> Steps[None]:
        """Write a snapshot of the newest step, unless there is one."""
        if self.body is not None and self._again is None:
            yield from self.snapshots.write(self.body, (attempt, self.live_owner))

    def _move(self, to: BodyState) -> None:
        if (self.state, to) not in _EDGES:
            raise AssertionError(f"replica {self.name}: no way from {self.state} to {to}")
        self.state = to
