"""One session in a worker's hands: claimed, loaded, logged, committed, given up. Without I/O.

    COLD ──load──▶ READY ──begin──▶ FORWARDED ──commit──▶ READY
     ▲               │                │   ▲ forward of the next micro-batch, or of the first again
     └──── drop ─────┴────────────────┘   └─┘

The memory of a session is only a cache: whatever leaves its relation to the store in doubt drops it, and
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
from server_worker.replica.loaded_body import LoadedBody, StepResult, open_body
from server_worker.session.actions import (
    Begin,
    ClaimSession,
    CommitStep,
    Finish,
    Handle,
    Loaded,
    LoadJob,
    PutRequest,
    ReadEntries,
    ReadSnapshot,
)
from server_worker.session.durability import DurabilityClock
from server_worker.session.snapshots import Snapshots
from server_worker.store import Attempt, Blob, ClaimOutcome, CommitOutcome, Done, Owner, SessionMeta
from spliteasy.errors import StoreError, UnlikeWorker


class BodyState(Enum):
    """Where a session's memory is."""

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
    """Who computes: `nonce` is the owner nonce of all its sessions."""

    nonce: str


class Ownership:
    """What one worker has of one session: its memory, and what the store said last."""

    def __init__(
        self,
        session: str,
        identity: WorkerIdentity,
        *,
        durability: DurabilityClock,
        clock: Callable[[], float],
    ) -> None:
        self.session = session
        self.identity = identity
        self.state = BodyState.COLD
        self.owner: Owner | None = None
        self.attempt: Attempt | None = None
        self.memory: LoadedBody | None = None
        self.snapshots = Snapshots(session, clock)
        self.paused = False
        """As the store said last: with each commit, load and open."""
        self.log_bytes = 0
        """Of its log in the store, after the last commit."""
        self.doubted = False
        """Another worker may have served the session meanwhile: ask the store before the memory is used."""
        self._durability = durability
        self._log_limit = 0
        self._oldest_checkpoint = 0
        """Of the device, when the open step began."""
        self._step_bytes = 0
        """Of the open step's requests."""
        self._writes: list[Handle[None]] = []
        """Of the open step's requests to the log; the commit waits for them."""

    @property
    def live(self) -> tuple[Attempt, Owner]:
        """Under which everything is written. Only where the session was opened or loaded."""
        assert self.attempt is not None
        assert self.owner is not None
        return self.attempt, self.owner

    @property
    def log_fill(self) -> float:
        """How much of the log's limit is used."""
        return self.log_bytes / self._log_limit if self._log_limit else 0.0

    @property
    def log_is_full(self) -> bool:
        return self.log_bytes > self._log_limit

    @property
    def log_is_long(self) -> bool:
        """Whether to cut it: a snapshot of this step, and a checkpoint of the device, let it begin here.

        Past half of its limit, or where so much was logged since the last snapshot that one costs little.
        """
        assert self.memory is not None
        return self.log_bytes > self._log_limit // 2 or self.snapshots.are_cheap(self.memory.state_bytes)

    def durable_step(self, committed: int) -> int:
        """The newest step ≤ `committed` that the store can't lose any more."""
        return self._durability.durable_step(self.session, committed)

    # the memory

    def is_under(self, meta: SessionMeta) -> bool:
        """Whether attempt and owner are those in the store."""
        return (meta.attempt, meta.owner) == (self.attempt, self.owner)

    def accept(self, meta: SessionMeta) -> None:
        """Go on under what the store says."""
        self.attempt, self.owner, self.paused = meta.attempt, meta.owner, meta.paused

    def check_environment(self, meta: SessionMeta) -> Steps[str | None]:
        """What computed the session's steps so far, if that was unlike this machine and the job tolerates it.

        Raises UnlikeWorker where the job does not.
        """
        job = yield from LoadJob(self.session.partition(".")[0], meta.job_digest)
        if job is None or not meta.committed:
            return None
        own = yield from Probe(job)
        if alike(meta.environment, own):
            return None
        if job.spec.durability.exactness == "bits":
            raise UnlikeWorker(self.session, stored=meta.environment, own=own)
        return meta.environment

    def claim(self, attempt: Attempt, step: int) -> Steps[ClaimOutcome]:
        """Ask the store for the session, to serve a request of `step`."""
        return (yield from ClaimSession(self.session, attempt, step, self.identity.nonce))

    def trusts_again(self, meta: SessionMeta) -> bool:
        """Whether nobody else owned the session since the memory was built; then it is in doubt no more."""
        assert self.memory is not None
        if meta.owner != self.owner or meta.committed != self.memory.step:
            return False
        self.doubted = False
        return True

    def load(self, meta: SessionMeta, *, replay_last: bool) -> Steps[StepResult | None]:
        """Build the memory from the newest snapshot and the log after it; what the last replayed step gave.

        `replay_last`: take the committed step again even where a snapshot has it, for its GRADIENT.
        """
        self._durability.loaded(self.session, meta.committed)
        job = yield from LoadJob(self.session.partition(".")[0], meta.job_digest)
        if job is None:
            raise StoreError(f"the store has session {self.session} but not its job {meta.job_digest[:12]}")
        newest = meta.committed - 1 if replay_last and meta.committed else meta.committed
        unlike = yield from self.check_environment(meta)
        base = max((step for step in meta.snapshots if step <= newest), default=max(meta.snapshots))
        blobs = yield from ReadSnapshot(self.session, base)
        memory = yield from open_body(job, self.session)
        yield from memory.restore(blobs, base)
        self.accept(meta)
        self.log_bytes, self._log_limit = meta.log_bytes, job.spec.durability.log_max_bytes
        result = yield from self._replay(memory, base, meta.committed)
        self.memory = memory
        self.snapshots.loaded(base, kept=len(meta.snapshots), logged_bytes=meta.log_bytes)
        self._move(BodyState.READY)
        yield from Loaded(self.session, meta.committed, meta.committed - base, unlike)
        return result

    def _replay(self, memory: LoadedBody, base: int, upto: int) -> Steps[StepResult | None]:
        """Take the logged steps after `base` again; one batch is read while the one before is computed."""
        result: StepResult | None = None
        ahead = (yield from Begin(ReadEntries(self.session, base, upto))) if base < upto else None
        while ahead is not None:
            entries = yield from Finish(ahead)
            done = entries[-1].step
            ahead = (yield from Begin(ReadEntries(self.session, done, upto))) if done < upto else None
            for entry in entries:
                result = yield from memory.replay(entry)
        return result

    def drop(self) -> None:
        """Throw the memory away; the store has everything."""
        self._move(BodyState.COLD)
        self.memory, self.owner, self.attempt = None, None, None
        self.doubted = False

    def abort(self) -> Steps[None]:
        """Forget the open step."""
        if self.memory is not None and self.state is BodyState.FORWARDED:
            yield from self.memory.abort()
            self._move(BodyState.READY)

    # the open step

    def begin(self, request: m.Forward) -> Steps[None]:
        """The memory is about to open the request's micro-batch; the first one begins the step."""
        self._move(BodyState.FORWARDED)
        if request.micro == 0:
            self._oldest_checkpoint, self._step_bytes = request.oldest_checkpoint, 0
            yield from self.let_go_of_writes()

    def log(self, step: int, index: int, raw: Blob) -> Steps[None]:
        """Begin to write a request's bytes to the log, while it is computed and answered."""
        attempt, owner = self.live
        self._step_bytes += memoryview(raw).nbytes
        put = PutRequest(self.session, attempt, owner, step, index, raw)
        self._writes.append((yield from Begin(put)))

    def let_go_of_writes(self) -> Steps[None]:
        """Wait for writes of a step that was given up: none may come in between those of the next try."""
        writes, self._writes = self._writes, []
        for write in writes:
            with suppress(StoreError):
                yield from Finish(write)

    def commit(self, step: int, digest: str, *, requests: int) -> Steps[CommitOutcome]:
        """Make the step that the memory has taken: `requests` were logged, `digest` is of its gradients.

        After anything but Done the memory is ahead of the store, and has to be dropped.
        """
        attempt, owner = self.live
        for write in self._writes:
            yield from Finish(write)
        self._writes.clear()
        outcome = yield from CommitStep(
            session=self.session,
            attempt=attempt,
            owner=owner,
            step=step,
            requests=requests,
            digest=digest,
            oldest_checkpoint=self._oldest_checkpoint,
        )
        if isinstance(outcome, Done):
            self._move(BodyState.READY)
            self.log_bytes = outcome.meta.log_bytes
            self.snapshots.committed(self._step_bytes, kept=len(outcome.meta.snapshots))
            self.paused = outcome.meta.paused
        return outcome

    def snapshot_if_due(self) -> Steps[None]:
        """Begin to write a snapshot, where it is time for one."""
        assert self.memory is not None
        yield from self.snapshots.write_if_due(self.memory, self.live, log_is_long=self.log_is_long)

    def save(self) -> Steps[None]:
        """Write a snapshot of the newest step, unless there is one."""
        if self.memory is not None:
            yield from self.snapshots.write(self.memory, self.live)

    def _move(self, to: BodyState) -> None:
        if (self.state, to) not in _EDGES:
            raise AssertionError(f"session {self.session}: no way from {self.state} to {to}")
        self.state = to


def attempt_of(ref: m.AttemptRef) -> Attempt:
    """The attempt that a message names, as the store knows it."""
    return Attempt(number=ref.number, nonce=ref.nonce)
