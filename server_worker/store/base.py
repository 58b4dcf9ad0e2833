"""The store seam: session state that outlives workers (docs/store.md).

A session is one device's training of one job, named `<job>.<device>`. Its state after step k is a pure
function of its newest snapshot and the write-ahead log of each later step's requests, as received.
`redis/` and `sqlite/` implement it; `tests/store/` is the contract that both pass.

Every write that moves a session is a compare-and-set against its attempt and its owner, in one atomic
script or transaction, and is idempotent: the client library may send it twice, and the first copy may
arrive last. Outcomes are values
(a union of small records), not exceptions; `StoreUnavailable` means that the outcome is unknown and
`StoreFull` that nothing was written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from server_worker.store.fleets import Blob as Blob
from server_worker.store.fleets import Fleets

WAITING_BYTES = 2 << 30
"""Requests of one session that no commit has named may take this many bytes."""

WAITING_BYTES_TOTAL = 4 << 30
"""Such requests of all sessions that one process serves may take this many bytes."""

PUT_TTL_S = 3600.0
"""A blob waits this long to be named; workers begin the time again while a step is open."""

DELIVERIES_TTL_S = 3600.0
UNREAD = "."
"""In the place of a session's name: that of deliveries which nobody has read yet. No session is called so."""

MAX_LOSSES = 512
"""Points of a session's loss curve that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One life of a device's training: raised by the device at every process start and every rewind."""

    number: int
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The worker that may commit. `fence` only grows; the nonce tells two owners apart."""

    fence: int
    nonce: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionMeta:
    session: str
    job_digest: str
    attempt: Attempt
    resume_step: int
    """The step that this attempt was opened at."""
    owner: Owner
    committed: int
    """The last committed step; 0 before the first. Steps count from 1."""
    snapshots: tuple[int, ...]
    """Steps that a snapshot is kept of, ascending. Step 0 (the job's initial weights) is in it while
    the log still reaches back to it, though no blobs are stored for it."""
    oldest_checkpoint: int
    """The oldest checkpoint step that the device said it holds, and that can be restored here: never
    before the oldest snapshot."""
    environment: str
    """The environment that the worker which opened the attempt computes with: torch, CPU capability, threads,
    and the digest of a probe (`server_worker.engine.probe`)."""
    log_bytes: int
    """Bytes of request blobs that committed log entries name."""
    closed: bool
    updated_at: float
    """Unix time of the last open, claim, commit, snapshot or close that was Done, seconds."""
    agent: str = ""
    """Version of the agent that opened the attempt, as it says."""
    total_steps: int = 0
    """The steps that the agent says it means to take; 0 where it did not say."""
    paused: bool = False
    """An operator wants no further step to begin. It outlives attempts, owners and `restart`."""
    gradient_digest: str | None = None
    """The digest that the last commit of this attempt had; None before its first."""
    waiting_bytes: int = 0
    """Bytes of requests and snapshots in the store that no commit has named yet."""
    best: tuple[int, ...] = ()
    """Steps whose snapshots are kept although the log has left them behind, ascending: after each of them an
    evaluation was the best so far. The newest one at or before the oldest snapshot, and all after it."""

    @property
    def stored(self) -> tuple[int, ...]:
        """Return the steps whose snapshots the store has, ascending."""
        return tuple(sorted({*self.snapshots, *self.best}))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """The requests of one step, in the order they were computed, as received."""

    step: int
    requests: tuple[bytes, ...]
    gradient_digest: str


# Outcomes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It took effect (or had, for a repeat). `meta` is the session afterwards."""

    meta: SessionMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleAttempt:
    """The caller's attempt is not the stored one; `stored` is."""

    stored: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleOwner:
    """Another worker owns the session now."""

    stored: Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBehind:
    """The step does not follow the committed one."""

    committed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherJob:
    """The session belongs to another version of the job."""

    job_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NoCommonStep:
    """No step can be restored by both sides. The store has `oldest` to `committed`; None: nothing."""

    oldest: int | None
    committed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownSession:
    """The store has no such session."""


OpenOutcome = Done | StaleAttempt | OtherJob | NoCommonStep
ClaimOutcome = Done | StaleAttempt | StepBehind | UnknownSession
CommitOutcome = Done | StaleAttempt | StaleOwner | StepBehind | UnknownSession


# Jobs and workers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJob:
    """A job package: `parts` maps part names to their bytes, `manifest` is what the digest is of."""

    name: str
    digest: str
    manifest: bytes
    parts: Mapping[str, bytes]
    signature: str | None = None
    """The operator's, of the digest (`spliteasy.job.signing`); the store only keeps it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerInfo:
    """A worker's heartbeat."""

    worker: str
    started_at: float
    sessions: int
    """Sessions in memory."""
    shards: tuple[int, ...]
    """Shards it has seen traffic of lately."""
    steps: int
    """Steps committed since its start."""
    host: str
    pid: int
    state: str
    """`serving`, `connecting` (no broker) or `draining`."""
    jobs: tuple[str, ...] = ()
    """Jobs (`name@digest`) of its sessions in memory: what others may load ahead."""
    owner: str = ""
    """The owner nonce of its sessions; empty where its version does not say."""


WantedParts = Callable[[Sequence[str]], Sequence[str]]
"""A function that picks the parts of a job to read, from those that there are."""


def all_parts(names: Sequence[str]) -> Sequence[str]:
    """Return a whole job."""
    return names


def no_parts(names: Sequence[str]) -> Sequence[str]:
    """The version and its manifest only."""
    return ()


class Store(Protocol):
    """Durable state. One instance per process; safe for concurrent use by asyncio tasks."""

    @property
    def fleets(self) -> Fleets:
        """Return the rounds of devices that train one model."""
        ...

    @property
    def loss_window_s(self) -> float:
        """A committed step older than this can't be lost by the store (0: never any)."""
        ...

    async def now(self) -> float:
        """Unix time by the store's own clock, the one that `updated_at` is of.

        No age of anything stored is ever reckoned by a worker's clock.
        """
        ...

    async def shards(self, first: int | None = None) -> int | None:
        """Return how many shards the stack has; None where nobody has said so yet.

        `first` is the number that it gets then. It never changes afterwards.
        """
        ...

    async def queue_type(self, first: str | None = None) -> str | None:
        """Return the type of the stack's queues (`QueueType`); None where nobody has said so yet.

        `first` is the type that it gets then. It never changes afterwards.
        """
        ...

    # jobs
    async def put_job(self, job: StoredJob) -> None:
        """Store the package under name@digest, and make the name point to it. Idempotent.

        Where that version is there, its signature is replaced, but never by none.
        """
        ...

    async def get_job(
        self, name: str, digest: str | None = None, *, wanted: WantedParts = all_parts
    ) -> StoredJob | None:
        """The version named, or (digest None) the newest one submitted. Only the parts that `wanted` takes
        from the names of all are read.
        """
        ...

    async def job_versions(self) -> Mapping[str, Sequence[str]]:
        """Digests by job name, the newest submitted first."""
        ...

    # sessions
    async def open_session(
        self,
        session: str,
        *,
        job_digest: str,
        attempt: Attempt,
        held: Sequence[int],
        worker: str,
        environment: str,
        agent: str = "",
        total_steps: int = 0,
        restart: bool = False,
    ) -> OpenOutcome:
        """Begin an attempt, in one atomic script or transaction.

        - Unknown session: created at step 0 if the device holds checkpoint 0 (`held` contains 0),
          else NoCommonStep(oldest=None, committed=None).
        - Another job digest: OtherJob. (An attempt that is stale is answered StaleAttempt first.)
        - attempt.number < stored, or equal with another nonce: StaleAttempt(stored).
        - Equal number and nonce (a repeat): owner is claimed again for `worker` (fence + 1, unless
          `worker` is the owner's nonce already), nothing else changes.
        - Newer: resume = the newest step in `held` that is in [oldest snapshot, committed]; none:
          NoCommonStep and nothing changes. Else committed = resume_step = resume, log entries and
          snapshots after it are dropped, oldest_checkpoint = min of `held` that is restorable, attempt
          stored, owner claimed for `worker` as above, closed = False, environment, agent and total_steps
          stored. Where `held` has nothing there, but one of `best`, that one is the resume and the oldest
          snapshot from now on. A device that comes again and again through one worker raises no fence.
        - Newer with `restart`: whatever there is, of whatever job, is dropped, and the session starts over
          at step 0; only the fence goes on. A repeat of it drops nothing.
        """
        ...

    async def hand_over(
        self, session: str, *, attempt: Attempt, owner: Owner, job_digest: str, environment: str
    ) -> CommitOutcome:
        """Let another version of the job go on from the committed step.

        Requires a snapshot of that step, which is above 0 (else StepBehind): a log can be replayed by the
        version that wrote it only. Log entries and older snapshots go, and oldest_checkpoint and resume_step
        are the committed step from now on. The same again is Done.
        """
        ...

    async def claim(self, session: str, *, attempt: Attempt, step: int, worker: str) -> ClaimOutcome:
        """Become the owner (fence + 1; no change if `worker` owns it already).

        Requires the stored attempt to equal `attempt` (else StaleAttempt, which also serves an attempt
        newer than the stored one: the caller compares), and step ∈ {committed, committed + 1}
        (else StepBehind).
        """
        ...

    async def session(self, session: str) -> SessionMeta | None: ...

    async def put_request(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, index: int, body: Blob
    ) -> None:
        """Write one request blob ahead of the commit that will name it; a store may put it off until then.

        Keyed by (step, attempt, owner nonce, index), so that rivals never share a blob; it has a time
        to live until a commit names it. A later put of the same key replaces it, but never what a commit
        has named already. The commit must come through the same instance.

        What no commit has named is counted (`waiting_bytes`) and goes with the next try of its step, with a
        newer attempt or owner, with a commit, and with the session. Raises StoreFull beyond WAITING_BYTES
        of the session, or WAITING_BYTES_TOTAL of all that came through this instance. A put of an attempt or
        owner that is not the stored one writes nothing, and its commit will say so.
        """
        ...

    async def keep_requests(self, session: str, *, attempt: Attempt, owner: Owner) -> None:
        """Begin the time to live of the session's uncommitted requests again: their step is still open."""
        ...

    async def commit(
        self,
        session: str,
        *,
        attempt: Attempt,
        owner: Owner,
        step: int,
        requests: int,
        gradient_digest: str,
        oldest_checkpoint: int,
    ) -> CommitOutcome:
        """Commit `step`, whose request blobs 0..requests-1 were put before.

        Requires attempt and owner equal to the stored ones and step == committed + 1. The same
        commit again (step == committed, same attempt, owner and digest) is Done. Raises StoreError if a
        blob is missing (it ran out, or the store lost it), and changes nothing then. Advances
        oldest_checkpoint (never back, and at most to step - 1: the device can't hold what it has no
        reply for), then trims: of the snapshots, the newest ≤ oldest_checkpoint and all after it stay;
        of the log, every entry after the oldest kept snapshot.
        """
        ...

    async def put_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, tensors: Mapping[str, Blob]
    ) -> CommitOutcome:
        """Store a snapshot of the state after `step` (≤ committed, else StepBehind), then trim as a commit.

        Blobs first (with a time to live), then one fenced flip. A snapshot of that step that is there
        already is kept as it is: it is of the same history. One that the trim would drop at once is Done.
        """
        ...

    async def keep_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int
    ) -> CommitOutcome:
        """Name `step` in `best`, so that its snapshot stays as long as no better one takes its place.

        Requires a snapshot of that step (else StepBehind). The same again is Done. Those before the newest of
        `best` that is at or before the oldest snapshot go: nothing can go back to before it any more.
        """
        ...

    async def read_snapshot(self, session: str, step: int) -> dict[str, bytes]:
        """The blobs of the snapshot of `step`; empty for step 0. KeyError where there is none."""
        ...

    def read_log(self, session: str, *, after: int, upto: int) -> AsyncIterator[LogEntry]:
        """Entries of steps after+1..upto in order. KeyError where one is missing (or goes while reading)."""
        ...

    async def close_session(self, session: str, *, attempt: Attempt, owner: Owner) -> CommitOutcome:
        """Mark the training as finished. A later open begins again from there."""
        ...

    async def pause(self, session: str, paused: bool) -> bool:
        """Set or clear `paused`; whether there is such a session. Nothing else moves, nor `updated_at`."""
        ...

    # reports: no training depends on them, and they may be lost
    async def add_losses(self, session: str, losses: Mapping[int, float]) -> None:
        """Keep the training loss of these steps; nothing where the session is unknown.

        Beyond MAX_LOSSES points the older part of the curve is thinned out (`rules.thinned`).
        """
        ...

    async def losses(self, session: str) -> Mapping[int, float]:
        """The curve's points by step, ascending. Those after the committed step are of a history that went
        back: the caller leaves them out.
        """
        ...

    async def sessions(self) -> Sequence[SessionMeta]:
        """Return all of them, by name."""
        ...

    async def session_count(self) -> int:
        """Return how many there are."""
        ...

    async def session_counts(self, jobs: Sequence[str]) -> Mapping[str, int]:
        """Return how many sessions each of these jobs has, by its name."""
        ...

    async def active_count(self, within_s: float) -> int:
        """Return how many changed within so many seconds, by the store's clock.

        A change counts at the latest with the next heartbeat of the worker that made it.
        """
        ...

    async def sessions_after(self, count: int, after: str = "") -> Sequence[SessionMeta]:
        """Return a page of all by name: the first `count` whose names come after `after`."""
        ...

    async def sessions_named(self, names: Sequence[str]) -> Sequence[SessionMeta]:
        """Return those of the named sessions that there are, in the order given."""
        ...

    async def newest_sessions(self, count: int, *, skip: int = 0) -> Sequence[SessionMeta]:
        """Return `count` of those that changed last, the newest first, after leaving out `skip` of them.

        A change counts at the latest with the next heartbeat of the worker that made it.
        """
        ...

    async def due_sessions(self, count: int, *, skip: int = 0) -> Sequence[SessionMeta]:
        """Return `count` of those that retention has to look at now, by the store's clock, the longest due
        first, after leaving out `skip`.

        A session is due once it was opened or handed over, until `look_later`.
        """
        ...

    async def look_later(self, waits_s: Mapping[str, float]) -> None:
        """Let each of these sessions be due so many seconds from now, by the store's clock; nothing where one
        is unknown."""
        ...

    async def forget(self, session: str) -> bool:
        """Delete the session with all its blobs; whether there was one. Its owner finds it unknown."""
        ...

    async def forget_abandoned(self, session: str, *, owner: Owner, idle_s: float) -> bool:
        """Delete the session as `forget` does if nothing touched it for over `idle_s`; whether it did.

        The script or transaction that deletes looks again, by the store's own clock, and whether the session
        still has that owner: a worker that opened or claimed it meanwhile keeps it.
        """
        ...

    # requests that end their worker
    async def begin_delivery(self, session: str | None, request: str) -> int:
        """Count that a request that was delivered again is about to be served; how often that was by now.

        Session None: what came is not read yet, so that nobody knows whose it is; `request` names it among
        all. The count is forgotten DELIVERIES_TTL_S after the last one, and with the session.
        """
        ...

    async def end_delivery(self, session: str | None, request: str) -> None:
        """It was served, whatever came of it: forget its count."""
        ...

    # devices
    async def allow(self, device: str, jobs: Sequence[str] | None) -> None:
        """Let the device train these jobs (`name` or `name@digest`) and no others; None: any."""
        ...

    async def allowed(self, devices: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """The jobs of those among the devices that are limited to some, in the order given."""
        ...

    # workers
    async def heartbeat(self, info: WorkerInfo, *, ttl_s: float) -> None: ...

    async def leave(self, worker: str) -> None: ...

    async def workers(self) -> Sequence[WorkerInfo]:
        """Workers whose heartbeat has not run out."""
        ...

    async def close(self) -> None: ...
