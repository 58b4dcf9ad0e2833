"""Outcomes from the answers of the Redis store's scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server_worker.store.base import (
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
from spliteasy.errors import StoreError

Outcome = OpenOutcome | ClaimOutcome | CommitOutcome


def outcome_of(session: str, answer: list[Any]) -> Outcome:
    """Return the outcome of what a script said. Raises StoreError where a blob to be named is gone."""
    match answer:
        case [b"done", record, steps, waiting]:
            pairs = iter(record.decode().split("\0"))
            return Done(meta=_meta(session, dict(zip(pairs, pairs, strict=True)), steps.split(), waiting))
        case [b"stale_attempt", number, nonce]:
            return StaleAttempt(stored=Attempt(number=int(number), nonce=nonce.decode()))
        case [b"stale_owner", fence, nonce]:
            return StaleOwner(stored=Owner(fence=int(fence), nonce=nonce.decode()))
        case [b"step_behind", committed]:
            return StepBehind(committed=int(committed))
        case [b"other_job", digest]:
            return OtherJob(job_digest=digest.decode())
        case [b"no_common_step"]:
            return NoCommonStep(oldest=None, committed=None)
        case [b"no_common_step", oldest, committed]:
            return NoCommonStep(oldest=int(oldest), committed=int(committed))
        case [b"unknown"]:
            return UnknownSession()
    raise StoreError(f"session {session}: a blob to be named is not in the store any more")


def _meta(session: str, fields: Mapping[str, str], snapshots: Sequence[bytes], waiting: int) -> SessionMeta:
    return SessionMeta(
        session=session,
        job_digest=fields["job"],
        attempt=Attempt(number=int(fields["number"]), nonce=fields["nonce"]),
        resume_step=int(fields["resume"]),
        owner=Owner(fence=int(fields["fence"]), nonce=fields["owner"]),
        committed=int(fields["committed"]),
        snapshots=tuple(sorted(map(int, snapshots))),
        oldest_checkpoint=int(fields["oldest"]),
        environment=fields["environment"],
        log_bytes=int(fields["log_bytes"]),
        closed=fields["closed"] == "1",
        updated_at=float(fields["updated"]),
        agent=fields.get("agent", ""),
        total_steps=int(fields.get("total", "0")),
        paused=fields.get("paused") == "1",
        waiting_bytes=waiting,
    )
