"""The type of the workers' queues lies in the store, so that all workers declare them alike."""

from __future__ import annotations

from broker.transport.topology import QueueType
from server_worker.store import Store
from spliteasy.errors import StoreError, UserError


async def settle_queue_type(store: Store, wanted: QueueType | None) -> QueueType:
    """Return the type of the stack's queues. Where it has none yet, it gets the wanted one, or quorum.

    To be called before `settle_shards`: a stack that has shards and no type is from before there was a
    choice, and its queues are quorum queues.

    Raises UserError where the stack has another type than the wanted one, and StoreError.
    """
    found = await store.queue_type()
    if found is None:
        is_new = await store.shards() is None
        first = wanted if is_new and wanted is not None else QueueType.QUORUM
        found = await store.queue_type(first.value)
    if found not in set(QueueType):
        raise StoreError(f"the store names a type of queues that this version does not know: {found}")
    if wanted not in (None, found):
        raise UserError(
            f"the stack was made with {found} queues, and {wanted} ones are asked for",
            hint=f"leave --queues out, or say --queues {found} (make up QUEUES={found}); the first worker "
            "of a stack fixes the type, and docs/operations.md says how to change it",
        )
    return QueueType(found)
