"""Reading a session's state while rivals may trim it: what has gone is asked for again later."""

from __future__ import annotations

from server_worker.store.base import LogEntry, Store
from spliteasy.errors import StoreUnavailable

BATCH_STEPS = 8
"""Replayed in one go, while other sessions wait for the torch thread."""
BATCH_BYTES = 8 << 20


async def read_snapshot(s: Store, session: str, step: int) -> dict[str, bytes]:
    """A snapshot's blobs; raises StoreUnavailable where a rival has trimmed it meanwhile."""
    try:
        return await s.read_snapshot(session, step)
    except KeyError as error:
        raise StoreUnavailable(f"session {session}: the snapshot of step {step} has just gone") from error


async def read_entries(s: Store, session: str, *, after: int, upto: int) -> list[LogEntry]:
    """The log's next entries, a batch of those up to `upto`: at least one, and few enough to hold at once.

    Raises StoreUnavailable where a rival has trimmed one meanwhile.
    """
    entries: list[LogEntry] = []
    size = 0
    try:
        async for entry in s.read_log(session, after=after, upto=min(upto, after + BATCH_STEPS)):
            entries.append(entry)
            size += sum(len(request) for request in entry.requests)
            if size >= BATCH_BYTES:
                break
    except KeyError as error:
        raise StoreUnavailable(f"session {session}: log entries after {after} have just gone") from error
    return entries
