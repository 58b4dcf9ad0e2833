"""A log entry may hold the state that its step gave, in the place of the requests that gave it.

The worker writes whichever is smaller. A body that is small beside what crosses its cuts, such as a frozen
base with adapters, is written whole after each step, and a takeover replays nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import orjson

from server_worker.store import LogEntry
from spliteasy.errors import StoreError

MAGIC = b"SPLITEASY STATE\n"
"""Begins a state; a request begins otherwise."""
_LENGTH = struct.Struct("<I")


def smaller(state_bytes: int, request_bytes: int) -> bool:
    """Return whether a step's state is to be written, and not its requests."""
    return state_bytes < request_bytes


def pack_state(blobs: Mapping[str, bytes]) -> bytes:
    """The blobs of a state as one, with their names."""
    header = orjson.dumps({name: len(blob) for name, blob in blobs.items()})
    return b"".join((MAGIC, _LENGTH.pack(len(header)), header, *blobs.values()))


def holds_state(entry: LogEntry) -> bool:
    """Return whether the entry holds a state."""
    return len(entry.requests) == 1 and entry.requests[0][: len(MAGIC)] == MAGIC


def unpack_state(entry: LogEntry) -> dict[str, bytes]:
    """The blobs of the state that an entry holds. Raises StoreError where it is damaged."""
    packed = memoryview(entry.requests[0])
    at = len(MAGIC) + _LENGTH.size
    try:
        (length,) = _LENGTH.unpack(packed[len(MAGIC) : at])
        sizes: dict[str, int] = orjson.loads(packed[at : at + length])
        at += length
        blobs = {}
        for name, size in sizes.items():
            blobs[name] = bytes(packed[at : at + size])
            at += size
    except (struct.error, ValueError, AttributeError, TypeError) as error:
        raise StoreError(f"the state that the log has of step {entry.step} is damaged: {error}") from error
    if at != len(packed):
        raise StoreError(f"the state that the log has of step {entry.step} is damaged: it is not whole")
    return blobs
