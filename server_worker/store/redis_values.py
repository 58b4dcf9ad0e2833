"""Named values of any size on Redis: pieces by SET, numbered through under one prefix.

The index that says how to put them together again has of each value its name and its pieces' sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import orjson

from server_worker.store.base import Blob
from server_worker.store.records import grouped, pieces
from server_worker.store.redis_link import RedisLink
from spliteasy.errors import StoreFull


async def put_values(
    link: RedisLink, prefix: str, values: Mapping[str, Blob], *, ttl_ms: int
) -> tuple[int, bytes]:
    """Write all pieces, to live `ttl_ms` unless a script names them; their number and their index.

    Raises StoreFull with nothing left behind.
    """
    cut = {name: list(pieces(value)) for name, value in values.items()}
    flat = [piece for parts in cut.values() for piece in parts]
    try:
        for group in grouped([len(piece) for piece in flat]):
            await link.batch([("SET", f"{prefix}:{i}", flat[i], "NX", "PX", ttl_ms) for i in group])
    except StoreFull:
        await link.call("UNLINK", *(f"{prefix}:{i}" for i in range(len(flat))))
        raise
    return len(flat), orjson.dumps([(name, [len(piece) for piece in parts]) for name, parts in cut.items()])


async def get_values(link: RedisLink, prefix: str, index: bytes) -> dict[str, bytes]:
    """The values. KeyError where a piece was dropped meanwhile."""
    sizes: list[tuple[str, list[int]]] = orjson.loads(index)
    found: list[bytes] = []
    for group in grouped([size for _, parts in sizes for size in parts]):
        found += await link.call("MGET", *(f"{prefix}:{i}" for i in group))
        if None in found:
            raise KeyError(f"{prefix} was just dropped")
    ordered = iter(found)
    return {name: b"".join(islice(ordered, len(parts))) for name, parts in sizes}
