"""Records that every store turns into bytes and back: a worker's heartbeat, a large value in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import orjson

from server_worker.store.base import Blob, WorkerInfo
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


def encode_worker(info: WorkerInfo) -> bytes:
    return orjson.dumps(asdict(info))


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
