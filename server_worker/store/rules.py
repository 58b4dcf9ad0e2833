"""The rules of what may happen to a session: the decisions of the store's contract, without I/O.

Each function takes the stored session and answers with an outcome; `Done` carries the session as it must
be stored. `log_bytes` and `updated_at` are the store's to fill in. The Redis store decides the same in
its scripts, where the state is.
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
    agent: str,
    total_steps: int,
    restart: bool,
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
    if not common:
        return NoCommonStep(oldest=meta.snapshots[0], committed=meta.committed)
    resume = max(common)
    return Done(
        meta=replace(
            meta,
            attempt=attempt,
            resume_step=resume,
            owner=Owner(fence=meta.owner.fence + 1, nonce=worker),
            committed=resume,
            snapshots=tuple(step for step in meta.snapshots if step <= resume),
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
    repeat: bool,
    oldest_checkpoint: int,
) -> CommitOutcome:
    """Move on to `step`. `repeat`: the log has an entry of that step with the same gradient digest."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    if step == meta.committed and repeat:
        return Done(meta=meta)
    if step != meta.committed + 1:
        return StepBehind(committed=meta.committed)
    oldest = max(meta.oldest_checkpoint, min(oldest_checkpoint, step - 1))
    return Done(meta=_trimmed(replace(meta, committed=step, oldest_checkpoint=oldest)))


def snapshotted(meta: SessionMeta | None, *, attempt: Attempt, owner: Owner, step: int) -> CommitOutcome:
    """Name a snapshot of `step`, where it is of use: then `snapshots` of the outcome has the step."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    if step > meta.committed:
        return StepBehind(committed=meta.committed)
    return Done(meta=_trimmed(replace(meta, snapshots=tuple(sorted({*meta.snapshots, step})))))


def closed(meta: SessionMeta | None, *, attempt: Attempt, owner: Owner) -> CommitOutcome:
    """Mark the training as finished."""
    refusal = _refusal(meta, attempt, owner)
    if refusal is not None:
        return refusal
    assert meta is not None
    return Done(meta=replace(meta, closed=True))


def abandoned(meta: SessionMeta | None, *, owner: Owner, idle_s: float, now: float) -> bool:
    """Return whether nothing touched the session for longer than `idle_s`, and `owner` still is its owner."""
    return meta is not None and meta.owner == owner and now - meta.updated_at > idle_s


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
    return replace(meta, snapshots=tuple(step for step in meta.snapshots if step >= oldest))
