"""What this process has put for steps that are not committed yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from server_worker.store.base import Attempt, Owner

_T = TypeVar("_T")
_Place = tuple[str, int, Attempt, str]
"""Session, step, attempt, owner nonce."""


class Waiting(Generic[_T]):
    """One value a request, by place and index; each is gone `ttl_s` after it was put (by `clock`)."""

    def __init__(self, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._values: dict[_Place, dict[int, tuple[float, _T]]] = {}

    def put(self, session: str, *, step: int, attempt: Attempt, owner: Owner, index: int, value: _T) -> None:
        now = self._clock()
        for place, values in list(self._values.items()):
            if all(deadline <= now for deadline, _ in values.values()):
                del self._values[place]
        place = (session, step, attempt, owner.nonce)
        self._values.setdefault(place, {})[index] = (now + self._ttl_s, value)

    def get(self, session: str, *, step: int, attempt: Attempt, owner: Owner, count: int) -> list[_T | None]:
        """The values of requests 0..count-1, None for those that are not there."""
        now = self._clock()
        values = self._values.get((session, step, attempt, owner.nonce), {})
        found = {index: value for index, (deadline, value) in values.items() if deadline > now}
        return [found.get(index) for index in range(count)]

    def __iter__(self) -> Iterator[_T]:
        return (value for values in self._values.values() for _, value in values.values())

    def drop(self, session: str, *, step: int, attempt: Attempt, owner: Owner) -> None:
        self._values.pop((session, step, attempt, owner.nonce), None)

    def drop_session(self, session: str) -> None:
        for place in [place for place in self._values if place[0] == session]:
            del self._values[place]
