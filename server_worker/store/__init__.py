"""Session state that outlives workers: the seam in `base.py`, its stores, and the way to open one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

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
from server_worker.store.keys import StoreKeys
from server_worker.store.sealed import check_keys, sealed
from server_worker.store.sqlite.store import SqliteStore
from spliteasy.errors import UserError
from spliteasy.runtime.urls import scheme_of

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
    "StoreKeys",
    "StoredJob",
    "UnknownSession",
    "WorkerInfo",
    "no_parts",
    "open_store",
]


async def open_store(url: str, keys: StoreKeys | None = None) -> Store:
    """Open the store at `url`: `redis://…`, `rediss://…`, `redis+sentinel://…`, `sqlite:///relative`,
    `sqlite:////absolute` (a file, made with its folder where missing), or `sqlite://` (in memory).

    A caller that reads or writes values (a worker, not a command on records) gives `keys`: they seal and
    open them.

    Raises UserError for a URL, credentials or a configuration that can't be right, and for keys that are not
    those of the store; StoreUnavailable if the store can't be reached.
    """
    store = await _open_store(url)
    if keys is None:
        return store
    try:
        store = sealed(store, keys)
        await check_keys(store)
    except BaseException:
        await store.close()
        raise
    return store


async def _open_store(url: str) -> Store:
    scheme = scheme_of(url)
    if scheme in ("redis+cluster", "rediss+cluster"):
        raise UserError(
            "the store URL names a Redis Cluster, and this version can't use one: the lists of all sessions, "
            "workers and jobs are keys of their own, which a cluster would spread over servers that lose "
            "writes independently",
            hint="name one server (redis://), or one that sentinels watch (redis+sentinel://)",
        )
    if scheme in ("redis", "rediss", "redis+sentinel", "rediss+sentinel"):
        # Imported late: the embedded store works without the redis package.
        from server_worker.store.redis.link import connect
        from server_worker.store.redis.store import RedisStore

        redis = RedisStore(await connect(url))
        try:
            await redis.check_format()
        except BaseException:
            await redis.close()
            raise
        return redis
    if scheme == "sqlite":
        host, _, path = url.partition("://")[2].partition("?")[0].partition("/")
        if host:
            raise UserError(
                "the store URL of SQLite names a host",
                hint="sqlite:///relative/path or sqlite:////absolute/path",
            )
        path = unquote(path)
        return SqliteStore(Path(path) if path else None)
    raise UserError(
        f"the store URL begins with {scheme!r}, which is no store"
        if scheme
        else "the store URL names no store",
        hint="redis://, rediss://, redis+sentinel:// or sqlite:///path",
    )
