"""Counts how often the broker delivers something again, before a worker reads it.

A request that ends its worker while it is computed is counted for its session, and answered
(`server_worker.actor`). This count catches what ends a worker earlier or later than that. It lies in the
store, because the worker that counted is gone, and because classic queues count nothing themselves.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress

from broker.transport.base import Delivery
from server_worker.store import Store
from spliteasy.errors import StoreError

MAX_UNREAD = 10
"""A frame that was delivered again more often than this, and served to no end, is buried unread. It is more
than for a request that can be read, whose device gets an answer."""


class Deliveries:
    """The counts of one stack, in its store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def may_read(self, delivery: Delivery) -> bool:
        """Count the delivery where it came before; whether it may be read once more.

        A store that does not answer counts nothing: whatever is computed needs it, and will wait.
        """
        if not delivery.redelivered:
            return True
        try:
            return await self._store.begin_delivery(None, _name(delivery)) <= MAX_UNREAD
        except StoreError:
            return True

    async def served(self, delivery: Delivery) -> None:
        """Forget the count: its request came to an end."""
        if delivery.redelivered:
            with suppress(StoreError):
                await self._store.end_delivery(None, _name(delivery))


def _name(delivery: Delivery) -> str:
    """Return a name that the same frame of the same sender has at every delivery."""
    digest = hashlib.blake2b(f"{delivery.routing_key} ".encode(), digest_size=16)
    digest.update(delivery.body)
    return digest.hexdigest()
