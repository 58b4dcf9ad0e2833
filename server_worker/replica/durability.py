"""The durable step is the newest that the store can no longer lose, by its declared loss window."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable


class DurabilityClock:
    """The clock tells which committed step of a session the store can no longer lose."""

    def __init__(self, window_s: float, clock: Callable[[], float]) -> None:
        self._window_s = 0.0 if window_s == math.inf else window_s
        self._clock = clock
        self._commits: dict[str, deque[tuple[int, float]]] = {}

    def committed(self, session: str, step: int) -> None:
        if self._window_s == 0.0:
            return
        self._commits.setdefault(session, deque()).append((step, self._clock()))

    def loaded(self, session: str, committed: int) -> None:
        """The session was loaded from the store, where others may have been at work meanwhile.

        Whatever is there is durable one window from now; what was known before may have been lost since.
        """
        self._commits[session] = deque([(committed, self._clock())])

    def parted(self, session: str) -> None:
        """The session is not served here any more."""
        self._commits.pop(session, None)

    def durable_step(self, session: str, committed: int) -> int:
        """The newest step ≤ `committed` that is past the store's loss window; 0 where none is known."""
        if self._window_s == 0.0:
            return committed
        commits = self._commits.setdefault(session, deque())
        while commits and commits[-1][0] > committed:
            commits.pop()
        if not commits:
            commits.append((committed, self._clock()))
        horizon = self._clock() - self._window_s
        while len(commits) > 1 and commits[1][1] <= horizon:
            commits.popleft()
        return commits[0][0] if commits[0][1] <= horizon else 0
