"""The rules of what may happen to a session: the decisions of the store's contract, without I/O.

Each function takes the stored session and answers with an outcome; `Done` carries the session as it must
be stored. `log_bytes`, `waiting_bytes` and `updated_at` are the store's to fill in, and ages are its to
judge. `sessions.py` calls these functions for every store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from server_worker.store.base import (
    MAX_LOSSES,
    Attempt,
    ClaimOutcome,
    CommitOutcome,
    Done,
    NoCommonStep,
    OpenOutcome,
    OtherJob,
    Owner,
    SessionMeta,
    StaleAttempt,
    StaleOwner,
    StepBehind,
    UnknownSession,
)


def opened(
    meta: SessionMeta | None,
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
    """Begin an attempt at the newest step that both sides can restore."""
    if meta is None:
        if 0 not in held:
            return NoCommonStep(oldest=None, committed=None)
        return Done(meta=_created(session, job_digest, attempt, worker, environment, agent, total_steps))
    same = attempt == meta.attempt
    if attempt.number <= meta.attempt.number and not same:
        return StaleAttempt(stored=meta.attempt)
    if restart and not same:
        anew = _created(session, job_digest, attempt, worker, environment, agent, total_steps)
        owner = Owner(fence=meta.owner.fence + 1, nonce=worker)
        return Done(meta=replace(anew, owner=owner, paused=meta.paused))
    if job_digest != meta.job_digest:
        return OtherJob(job_digest=meta.job_digest)
    if same:
        return Done(meta=_owned(meta, worker))
    common = [step for step in held if meta.snapshots[0] <= step <= meta.committed]
    common = common or sorted(step for step in held if step in meta.best)[-1:]
    if not common:
        return NoCommonStep(oldest=meta.snapshots[0], committed=meta.committed)
    resume = max(common)
    return Done(
        meta=replace(
            meta,
            attempt=attempt,
            resume_step=resume,
            owner=_owned(meta, worker).owner,
            committed=resume,
            gradient_digest=None,
            snapshots=tuple(step for step in meta.snapshots if step <= resume) or (resume,),
            best=tuple(step for step in meta.best if step <= resume),
            oldest_checkpoint=min(common),
            environment=environment,
            agent=agent,
            total_steps=total_steps,
            closed=False,
        )
    )


def handed_over(
    meta: SessionMeta | None, *, attempt: Attempt, owner: Owner, job_digest: str, environment: str
) -> CommitOutcome:
    """Let another version of the job go on from the committed step."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    step = meta.committed
    if not step or step not in meta.snapshots:
        return StepBehind(committed=step)
    return Done(
        meta=replace(
            meta,
            job_digest=job_digest,
            environment=environment,
            resume_step=step,
            oldest_checkpoint=step,
            snapshots=(step,),
            best=(),
            gradient_digest=None,
        )
    )


def claimed(meta: SessionMeta | None, *, attempt: Attempt, step: int, worker: str) -> ClaimOutcome:
    """Make `worker` the owner."""
    if meta is None:
        return UnknownSession()
    if attempt != meta.attempt:
        return StaleAttempt(stored=meta.attempt)
    if step not in (meta.committed, meta.committed + 1):
        return StepBehind(committed=meta.committed)
    return Done(meta=_owned(meta, worker))


def committed(
    meta: SessionMeta | None,
    *,
    attempt: Attempt,
    owner: Owner,
    step: int,
    gradient_digest: str,
    oldest_checkpoint: int,
) -> CommitOutcome:
    """Move on to `step`. The last commit of this attempt may be repeated, with the same digest."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    if step == meta.committed and gradient_digest == meta.gradient_digest:
        return Done(meta=meta)
    if step != meta.committed + 1:
        return StepBehind(committed=meta.committed)
    oldest = max(meta.oldest_checkpoint, min(oldest_checkpoint, step - 1))
    moved = replace(meta, committed=step, gradient_digest=gradient_digest, oldest_checkpoint=oldest)
    return Done(meta=_trimmed(moved))


def put_aside(meta: SessionMeta | None, *, attempt: Attempt, owner: Owner, step: int) -> CommitOutcome:
    """Write a request of `step` ahead of its commit: the session stays as it is."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    return StepBehind(committed=meta.committed) if step <= meta.committed else Done(meta=meta)


def snapshotted(meta: SessionMeta | None, *, attempt: Attempt, owner: Owner, step: int) -> CommitOutcome:
    """Name a snapshot of `step`, where it is of use: then `snapshots` of the outcome has the step."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    if step > meta.committed:
        return StepBehind(committed=meta.committed)
    return Done(meta=_trimmed(replace(meta, snapshots=tuple(sorted({*meta.snapshots, step})))))


def kept(meta: SessionMeta | None, *, attempt: Attempt, owner: Owner, step: int) -> CommitOutcome:
    """Keep the snapshot of `step`, after which an evaluation was the best so far."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    if step not in meta.stored:
        return StepBehind(committed=meta.committed)
    return Done(meta=_trimmed(replace(meta, best=tuple(sorted({*meta.best, step})))))


def closed(meta: SessionMeta | None, *, attempt: Attempt, owner: Owner) -> CommitOutcome:
    """Mark the training as finished."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    return Done(meta=replace(meta, closed=True))


def dropped_steps(before: SessionMeta | None, after: SessionMeta | None) -> list[int]:
    """Return the steps whose log entries a session no longer reaches; `after` None: it is deleted."""
    if before is None:
        return []
    first, last = before.snapshots[0], before.committed
    if after is None:
        return [*range(first + 1, last + 1)]
    older = range(first + 1, min(after.snapshots[0], last) + 1)
    newer = range(max(after.committed, first) + 1, last + 1)
    return [*older, *newer]


def dropped_snapshots(before: SessionMeta | None, after: SessionMeta | None) -> list[int]:
    """Return the steps whose snapshots go; step 0 has nothing that could."""
    still = () if after is None else after.stored
    return [] if before is None else [step for step in before.stored if step and step not in still]


def thinned(steps: Iterable[int], limit: int = MAX_LOSSES) -> set[int]:
    """Return which points of a curve go so that at most `limit` stay: every other one, again and again.

    It goes down to half of `limit` then, so that the newest steps lie dense, the older ones apart evenly.
    """
    kept = every = set(steps)
    stride = 1
    while len(every) > limit and len(kept) > limit // 2:
        stride *= 2
        kept = {step for step in kept if step % stride == 0}
    return every - kept


def _refusal(
    meta: SessionMeta | None, attempt: Attempt, owner: Owner
) -> StaleAttempt | StaleOwner | UnknownSession | None:
    if meta is None:
        return UnknownSession()
    if attempt != meta.attempt:
        return StaleAttempt(stored=meta.attempt)
    if owner != meta.owner:
        return StaleOwner(stored=meta.owner)
    return None


def _created(
    session: str,
    job_digest: str,
    attempt: Attempt,
    worker: str,
    environment: str,
    agent: str,
    total_steps: int,
) -> SessionMeta:
    return SessionMeta(
        session=session,
        job_digest=job_digest,
        attempt=attempt,
        resume_step=0,
        owner=Owner(fence=1, nonce=worker),
        committed=0,
        snapshots=(0,),
        oldest_checkpoint=0,
        environment=environment,
        log_bytes=0,
        closed=False,
        updated_at=0.0,
        agent=agent,
        total_steps=total_steps,
    )


def _owned(meta: SessionMeta, worker: str) -> SessionMeta:
    if meta.owner.nonce == worker:
        return meta
    return replace(meta, owner=Owner(fence=meta.owner.fence + 1, nonce=worker))


def _trimmed(meta: SessionMeta) -> SessionMeta:
    """Drop the snapshots that no checkpoint of the device needs any more."""
    oldest = max(step for step in meta.snapshots if step <= meta.oldest_checkpoint)
    if oldest != meta.snapshots[0]:
        meta = replace(meta, snapshots=tuple(step for step in meta.snapshots if step >= oldest))
    best = max((step for step in meta.best if step <= oldest), default=0)
    if meta.best and best > meta.best[0]:
        meta = replace(meta, best=tuple(step for step in meta.best if step >= best))
    return meta
