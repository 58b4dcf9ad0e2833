"""The number of shards lies in the store, so that all sides agree."""

from __future__ import annotations

from broker.transport.topology import DEFAULT_SHARDS
from server_worker.store import Store
from spliteasy.errors import UserError


async def settle_shards(store: Store, wanted: int | None) -> int:
    """Return the stack's number of shards. Where it has none yet, it gets the wanted number, or the default.

    Raises UserError where the stack was made with another number than the wanted one, and StoreError.
    """
    found = await store.shards(wanted or DEFAULT_SHARDS)
    assert found is not None
    if wanted not in (None, found):
        raise UserError(
            f"the stack was made with {found} shards, and {wanted} are asked for",
            hint=f"leave --shards out, or say --shards {found} (make up SHARDS={found}); the first worker "
            "of a stack fixes the number, so that another one needs a new stack: make clean, then "
            f"make up SHARDS={wanted}",
        )
    return found
