"""Session state that outlives workers: the seam in `base.py`, its stores, and the way to open one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from server_worker.store.base import (
    Attempt,
    Blob,
    ClaimOutcome,
    CommitOutcome,
    Done,
    LogEntry,
    NoCommonStep,
    OpenOutcome,
    OtherJob,
    Owner,
    SessionMeta,
    StaleAttempt,
    StaleOwner,
    StepBehind,
    Store,
    StoredJob,
    UnknownSession,
    WorkerInfo,
    no_parts,
)
from server_worker.store.sqlite import SqliteStore
from spliteasy.errors import UserError

__all__ = [
    "Attempt",
    "Blob",
    "ClaimOutcome",
    "CommitOutcome",
    "Done",
    "LogEntry",
    "NoCommonStep",
    "OpenOutcome",
    "OtherJob",
    "Owner",
    "SessionMeta",
    "SqliteStore",
    "StaleAttempt",
    "StaleOwner",
    "StepBehind",
    "Store",
    "StoredJob",
    "UnknownSession",
    "WorkerInfo",
    "no_parts",
    "open_store",
]


async def open_store(url: str) -> Store:
    """The store at `url`: `redis://…`, `rediss://…`, `sqlite:///relative`, `sqlite:////absolute` (a file,
    made with its folder where missing), or `sqlite://` (in memory).

    Raises UserError for a URL, credentials or a configuration that can't be right, StoreUnavailable if the
    store can't be reached.
    """
    scheme = url.partition("://")[0]
    if scheme in ("redis", "rediss"):
        # Imported late: the embedded store works without the redis package.
        from server_worker.store.redis import RedisStore
        from server_worker.store.redis_link import connect

        return RedisStore(await connect(url))
    if scheme == "sqlite":
        parts = urlsplit(url)
        if parts.netloc:
            raise UserError(
                f"the store URL {url} names a host",
                hint="sqlite:///relative/path or sqlite:////absolute/path",
            )
        path = unquote(parts.path).removeprefix("/")
        return SqliteStore(Path(path) if path else None)
    raise UserError(
        f"the store URL begins with {scheme!r}, which is no store",
        hint="redis://, rediss:// or sqlite:///path",
    )
