"""The deliveries that a subscription has received and not handed out yet. All transports share it."""

from __future__ import annotations

import asyncio
from collections import deque

from broker.transport.base import Delivery
from spliteasy.errors import LinkError


class Inbox:
    """Deliveries in order of arrival, for one or more readers, until it ends.

    The end is either clean (readers stop) or an error (each reader raises it). The first end counts.
    """

    def __init__(self) -> None:
        self._waiting: deque[Delivery] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._error: LinkError | None = None

    @property
    def ended(self) -> bool:
        return self._ended

    def put(self, delivery: Delivery) -> None:
        """Add a delivery; ignored after the end, when it goes back to its queue anyhow."""
        if not self._ended:
            self._waiting.append(delivery)
            self._changed.set()

    def end(self, error: LinkError | None = None) -> list[Delivery]:
        """End the inbox, and return the deliveries that nobody took."""
        if self._ended:
            return []
        self._ended, self._error = True, error
        self._changed.set()
        left = list(self._waiting)
        self._waiting.clear()
        return left

    async def get(self) -> Delivery:
        """Return the next delivery. Raises `StopAsyncIteration` after a clean end, else the error.

        A cancelled call takes nothing.
        """
        while not self._waiting:
            if self._error is not None:
                raise type(self._error)(self._error.message, hint=self._error.hint)
            if self._ended:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft()
