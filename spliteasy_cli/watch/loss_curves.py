"""Loss curves as the store has them, for those who watch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from spliteasy.errors import LinkError, StoreError
from spliteasy_cli.watch.cluster import ClusterClient, ClusterSnapshot

EVERY_S = 5.0
CURVES = 12
"""Sessions whose curves are read: those that committed last."""

POINTS = 200


class Curves:
    """Loss curves, read again every EVERY_S where they have grown."""

    def __init__(self, eyes: ClusterClient) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}
        """The curve of each session: (step, loss), ascending."""
        self._eyes = eyes
        self._drawn: dict[str, tuple[int, int]] = {}
        """Attempt and step at which each was read."""
        self._looked_at = float("-inf")

    def last(self, session: str) -> float | None:
        """The newest loss that is known."""
        points = self.points.get(session)
        return points[-1][1] if points else None

    async def look(self, picture: ClusterSnapshot) -> None:
        """Read the curves. It never raises for a broker or store that is away: what was read stays."""
        if time.monotonic() - self._looked_at < EVERY_S:
            return
        self._looked_at = time.monotonic()
        newest = sorted(picture.sessions, key=lambda meta: meta.updated_at)[-CURVES:]
        self.points = {meta.session: self.points.get(meta.session, []) for meta in newest}
        self._drawn = {name: drawn for name, drawn in self._drawn.items() if name in self.points}
        for meta in newest:
            drawn, name = (meta.attempt.number, meta.committed), meta.session
            if self._drawn.get(name) == drawn:
                continue
            with suppress(LinkError, StoreError):
                losses = await self._eyes.ask(lambda _, store, name=name: store.losses(name))  # type: ignore[misc]
                self.points[name] = _thinned(losses, meta.committed)
                self._drawn[name] = drawn


def _thinned(losses: Mapping[int, float], committed: int) -> list[tuple[int, float]]:
    """The points up to the committed step, thinned out evenly; the newest stays."""
    points = [(step, float(f"{loss:.6g}")) for step, loss in losses.items() if step <= committed]
    stride = -(-len(points) // POINTS) or 1
    return points[::-1][::stride][::-1]
