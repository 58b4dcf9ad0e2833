"""Training losses on their way to the store: gathered, and written every few seconds.

They are told for curves only: what a dying worker has not written is lost, and no training depends on it.
"""

from __future__ import annotations

from server_worker.store import Store


class Losses:
    """Losses by session and step that the store does not have yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[int, float]] = {}

    def add(self, session: str, step: int, loss: float) -> None:
        self._waiting.setdefault(session, {})[step] = loss

    async def write(self, store: Store) -> None:
        """Raises StoreError; what had its turn is not tried again."""
        while self._waiting:
            session, losses = self._waiting.popitem()
            await store.add_losses(session, losses)
