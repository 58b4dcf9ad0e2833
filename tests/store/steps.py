"""Shorthand for the contract tests: begin a session, commit steps, read everything back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from server_worker.store import (
    Attempt,
    CommitOutcome,
    Done,
    LogEntry,
    OpenOutcome,
    SessionMeta,
    SqliteStore,
    Store,
    StoreKeys,
)
from server_worker.store.keys import StoreKey
from server_worker.store.redis.store import RedisStore
from server_worker.store.sealed import SEAL_BYTES, SealedStore

SESSION = "digits.phone-1"
JOB = "0" * 64
FIRST = Attempt(number=1, nonce="aaaa")
SECOND = Attempt(number=2, nonce="bbbb")
OLD, NEW = StoreKey(bytes(range(32))), StoreKey(bytes(range(32, 64)))
KEYS = StoreKeys((NEW, OLD), open_too=False)


async def open_at(
    store: Store,
    *,
    session: str = SESSION,
    attempt: Attempt = FIRST,
    held: Sequence[int] = (0,),
    worker: str = "w1",
    job: str = JOB,
    environment: str = "torch 2, avx2, 1 thread",
    restart: bool = False,
) -> OpenOutcome:
    return await store.open_session(
        session,
        job_digest=job,
        attempt=attempt,
        held=held,
        worker=worker,
        environment=environment,
        restart=restart,
    )


async def begin(store: Store, session: str = SESSION) -> SessionMeta:
    """A new session, owned by w1."""
    return done(await open_at(store, session=session))


def done(outcome: OpenOutcome | CommitOutcome) -> SessionMeta:
    assert isinstance(outcome, Done), outcome
    return outcome.meta


async def put(store: Store, meta: SessionMeta, step: int, *bodies: bytes) -> None:
    for index, body in enumerate(bodies):
        await store.put_request(
            meta.session, attempt=meta.attempt, owner=meta.owner, step=step, index=index, body=body
        )


async def commit(
    store: Store, meta: SessionMeta, step: int, *, requests: int = 2, digest: str = "", oldest: int = 0
) -> CommitOutcome:
    """Commit as the owner and in the attempt that `meta` names."""
    return await store.commit(
        meta.session,
        attempt=meta.attempt,
        owner=meta.owner,
        step=step,
        requests=requests,
        gradient_digest=digest or f"ga{step}",
        oldest_checkpoint=oldest,
    )


async def run_steps(store: Store, meta: SessionMeta, upto: int, *, oldest: int = 0) -> SessionMeta:
    """Commit every step to `upto`; FORWARD and BACKWARD of step k are `f<k>` and `b<k>`."""
    for step in range(meta.committed + 1, upto + 1):
        await put(store, meta, step, b"f%d" % step, b"b%d" % step)
        meta = done(await commit(store, meta, step, oldest=oldest))
    return meta


async def snapshot(store: Store, meta: SessionMeta, step: int, weight: bytes = b"w") -> CommitOutcome:
    return await store.put_snapshot(
        meta.session, attempt=meta.attempt, owner=meta.owner, step=step, tensors={"weight": weight}
    )


async def log_of(store: Store, after: int, upto: int, session: str = SESSION) -> list[LogEntry]:
    return [entry async for entry in store.read_log(session, after=after, upto=upto)]


async def logged_steps(store: Store, session: str = SESSION, upto: int = 50) -> list[int]:
    """Steps that the log has an entry of, each asked for alone."""
    found = []
    for step in range(1, upto + 1):
        try:
            found += [entry.step for entry in await log_of(store, step - 1, step, session)]
        except KeyError:
            continue
    return found


async def rewrite(store: SqliteStore | RedisStore, session: str, **changes: Any) -> None:
    """Have somebody at the session's record."""

    def decided(meta: SessionMeta | None) -> Done:
        assert meta is not None
        return Done(meta=replace(meta, **changes))

    await store._move(session, decided, touch=False)


def stored_bytes(store: Store, *bodies: bytes) -> int:
    """Return what these requests take in the store."""
    return sum(map(len, bodies)) + len(bodies) * (SEAL_BYTES if isinstance(store, SealedStore) else 0)
