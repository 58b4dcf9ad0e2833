"""Reading a session's state while rivals may trim it: what has gone is asked for again later."""

from __future__ import annotations

from server_worker.store import LogEntry, Store
from spliteasy.errors import StoreUnavailable


async def read_snapshot(s: Store, session: str, step: int) -> dict[str, bytes]:
    """A snapshot's blobs; raises StoreUnavailable where a rival has trimmed it meanwhile."""
    try:
        return await s.read_snapshot(session, step)
    except KeyError as error:
        raise StoreUnavailable(f"session {session}: the snapshot of step {step} has just gone") from error


async def read_entry(s: Store, session: str, step: int) -> LogEntry:
    """One entry of the log; raises StoreUnavailable where a rival has trimmed it meanwhile."""
    try:
        return await anext(s.read_log(session, after=step - 1, upto=step))
    except KeyError as error:
        raise StoreUnavailable(f"session {session}: the log entry of step {step} has just gone") from error
