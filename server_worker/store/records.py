"""Records that every store turns into bytes and back: a session, a worker's heartbeat, a value in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import orjson

from server_worker.store.base import Attempt, Blob, Owner, SessionMeta, WorkerInfo
from spliteasy.runtime.readable import shown

PIECE_BYTES = 8 << 20
"""A large value is kept in pieces: databases limit a value (Redis to 512 MiB), and no call may take long
because of its size."""


def pieces(value: Blob, piece_bytes: int = PIECE_BYTES) -> Iterator[memoryview]:
    """Views of `value`, none over `piece_bytes`, at least one."""
    view = memoryview(value).cast("B")
    for start in range(0, max(len(view), 1), piece_bytes):
        yield view[start : start + piece_bytes]


def grouped(sizes: Sequence[int]) -> Iterator[range]:
    """Positions in order, in groups of about PIECE_BYTES: what goes into one round trip."""
    start = total = 0
    for position, size in enumerate(sizes):
        if position > start and total + size > PIECE_BYTES:
            yield range(start, position)
            start, total = position, 0
        total += size
    if sizes:
        yield range(start, len(sizes))


_BESIDE = frozenset({"session", "log_bytes", "updated_at", "waiting_bytes"})
"""The record's name, and what the store itself counts: they lie beside the record."""

_RECORD = tuple(field.name for field in fields(SessionMeta) if field.name not in _BESIDE)


def encode_session(meta: SessionMeta) -> bytes:
    """Encode what `decode_session` does not get told."""
    return orjson.dumps({name: getattr(meta, name) for name in _RECORD})


def decode_session(
    session: str, record: bytes, *, log_bytes: int, updated_at: float, waiting_bytes: int = 0
) -> SessionMeta:
    """Decode a session's record. What a newer version adds is ignored."""
    said = orjson.loads(record)
    known = {name: said[name] for name in _RECORD if name in said}
    return SessionMeta(
        **known
        | {
            "attempt": Attempt(**said["attempt"]),
            "owner": Owner(**said["owner"]),
            "snapshots": tuple(said["snapshots"]),
            "best": tuple(said.get("best", ())),
        },
        session=session,
        log_bytes=log_bytes,
        updated_at=updated_at,
        waiting_bytes=waiting_bytes,
    )


def encode_worker(info: WorkerInfo) -> bytes:
    return orjson.dumps(info)


def decode_worker(line: bytes) -> WorkerInfo:
    """Decode a worker's record. What a newer version adds is ignored: both share a store while they are
    upgraded."""
    said = orjson.loads(line)
    known: dict[str, Any] = {
        name: shown(value) if isinstance(value, str) else value
        for name, value in said.items()
        if name in WorkerInfo.__dataclass_fields__
    }
    for name in ("shards", "jobs"):
        known[name] = tuple(known.get(name, ()))
    return WorkerInfo(**known)
