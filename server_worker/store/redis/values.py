"""Values of any size on Redis, in pieces of 1 MiB; named ones are numbered through under one prefix.

The index that says how to put them together again has of each value its name and its pieces' sizes.
A session's record names blobs by entries: a step's requests, or the tensors of a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import orjson

from server_worker.store.base import Blob, WantedParts, all_parts
from server_worker.store.records import grouped, pieces
from server_worker.store.redis.link import Command, RedisLink
from spliteasy.errors import StoreFull

PIECE_BYTES = 1 << 20
"""Redis takes memory for larger values from the system and gives it back, in three places each: 42 MB cost
135 ms of its processor time whole, and 57 ms in pieces."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Blobs that a session's record names, for a step."""

    nbytes: int
    """The bytes by which it counts in the log."""
    blobs: Mapping[str, int]
    """The number of pieces by token, in order."""
    text: str
    """The text that its reader needs."""

    def encode(self) -> str:
        named = "".join(f" {token} {count}" for token, count in self.blobs.items())
        return f"{self.nbytes}{named}\n{self.text}"

    @classmethod
    def decode(cls, stored: bytes) -> Entry:
        first, text = stored.decode().split("\n", 1)
        nbytes, *named = first.split(" ")
        return cls(int(nbytes), dict(zip(named[::2], map(int, named[1::2]), strict=True)), text)


async def write_pieces(link: RedisLink, writes: Sequence[Command]) -> None:
    """Write each `SET key piece …`, some MiB in a round trip. Raises StoreFull with nothing left behind."""
    try:
        if len(writes) == 1:  # as most are: a pipeline would cost more than it saves
            await link.call(*writes[0])
            return
        for group in grouped([len(piece) for _, _, piece, *_ in writes]):
            await link.batch(writes[group.start : group.stop])
    except StoreFull:
        await link.call("UNLINK", *(key for _, key, *_ in writes))
        raise


async def put_values(
    link: RedisLink, prefix: str, values: Mapping[str, Blob], *, ttl_ms: int
) -> tuple[int, bytes]:
    """Write all pieces, to live `ttl_ms` unless a script names them; their number and their index.

    Raises StoreFull with nothing left behind.
    """
    cut = {name: list(pieces(value, PIECE_BYTES)) for name, value in values.items()}
    flat = [piece for parts in cut.values() for piece in parts]
    await write_pieces(
        link, [("SET", f"{prefix}:{i}", piece, "NX", "PX", ttl_ms) for i, piece in enumerate(flat)]
    )
    return len(flat), orjson.dumps([(name, [len(piece) for piece in parts]) for name, parts in cut.items()])


async def get_values(
    link: RedisLink, prefix: str, index: bytes | str, wanted: WantedParts = all_parts
) -> dict[str, bytes]:
    """The values that are wanted of those that there are. KeyError where a piece was dropped meanwhile."""
    sizes: list[tuple[str, list[int]]] = orjson.loads(index)
    names = set(wanted([name for name, _ in sizes]))
    numbers, count = [], 0
    for name, parts in sizes:
        if name in names:
            numbers += list(enumerate(parts, start=count))
        count += len(parts)
    found: list[bytes] = []
    for group in grouped([size for _, size in numbers]):
        found += await link.call("MGET", *(f"{prefix}:{numbers[i][0]}" for i in group))
        if None in found:
            raise KeyError(f"{prefix} was just dropped")
    ordered = iter(found)
    return {name: b"".join(islice(ordered, len(parts))) for name, parts in sizes if name in names}
