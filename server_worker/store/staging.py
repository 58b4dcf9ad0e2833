"""The requests that this process has put for steps that are not committed yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from server_worker.store.base import WAITING_BYTES, WAITING_BYTES_TOTAL, Attempt, Owner
from spliteasy.errors import StoreFull

_T = TypeVar("_T")
_Whose = tuple[str, str]
"""Session, owner nonce."""
_Place = tuple[int, int]
"""Step, index."""


@dataclass(slots=True)
class _Value(Generic[_T]):
    deadline: float
    nbytes: int
    held_bytes: int
    value: _T


@dataclass(slots=True)
class _Tries(Generic[_T]):
    attempt: Attempt
    values: dict[_Place, _Value[_T]] = field(default_factory=dict)


class StagedRequests(Generic[_T]):
    """One value a request, by place and index; each is gone `ttl_s` after it was put (by `clock`).

    Of a session and its owner only the newest attempt's are kept, so that tries that came to nothing do not
    pile up.
    """

    def __init__(self, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._tries: dict[_Whose, _Tries[_T]] = {}

    def put(
        self,
        session: str,
        *,
        step: int,
        attempt: Attempt,
        owner: Owner,
        index: int,
        value: _T,
        nbytes: int,
        held_bytes: int = 0,
    ) -> None:
        """Keep a value that stands for `nbytes`, of which this process holds `held_bytes` in memory."""
        whose = (session, owner.nonce)
        if (tries := self._tries.get(whose)) is None or tries.attempt != attempt:
            tries = self._tries[whose] = _Tries(attempt)
        tries.values[step, index] = _Value(self._clock() + self._ttl_s, nbytes, held_bytes, value)

    def check_room(
        self, session: str, *, step: int, attempt: Attempt, owner: Owner, index: int, nbytes: int
    ) -> None:
        """Drop what ran out. Raises StoreFull where one more request of `nbytes` would be too much."""
        self._prune()
        of_session, replaced = 0, 0
        tries = self._tries.get((session, owner.nonce))
        if tries is not None:
            of_session = sum(each.nbytes for each in tries.values.values())
            there = tries.values.get((step, index))
            replaced = of_session if tries.attempt != attempt else there.nbytes if there else 0
        for used, most, whose in (
            (of_session, WAITING_BYTES, f"session {session} has"),
            (self.nbytes, WAITING_BYTES_TOTAL, "this worker's sessions have"),
        ):
            if used - replaced + nbytes > most:
                raise StoreFull(
                    f"{whose} {used - replaced} bytes of requests that are not committed yet",
                    hint="it goes on when others have been committed",
                )

    def get(self, session: str, *, step: int, attempt: Attempt, owner: Owner, count: int) -> list[_T | None]:
        """The values of requests 0..count-1, None for those that are not there."""
        tries = self._tries.get((session, owner.nonce))
        if tries is None or tries.attempt != attempt:
            return [None] * count
        now, places = self._clock(), tries.values
        found = [places.get((step, index)) for index in range(count)]
        return [each.value if each is not None and each.deadline > now else None for each in found]

    def keep(self, session: str, *, attempt: Attempt, owner: Owner) -> bool:
        """Restart the time of what is there; whether that is anything."""
        tries = self._tries.get((session, owner.nonce))
        now = self._clock()
        if tries is None or tries.attempt != attempt:
            return False
        for each in tries.values.values():
            if each.deadline > now:
                each.deadline = now + self._ttl_s
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of all requests that wait."""
        return sum(each.nbytes for tries in self._tries.values() for each in tries.values.values())

    @property
    def held_bytes(self) -> int:
        """Bytes that wait in this process."""
        return sum(each.held_bytes for tries in self._tries.values() for each in tries.values.values())

    def drop(self, session: str, *, step: int, owner: Owner) -> None:
        """A commit of `step` has been decided: nothing up to it is of use any more."""
        tries = self._tries.get((session, owner.nonce))
        if tries is not None:
            for place in [place for place in tries.values if place[0] <= step]:
                del tries.values[place]
            if not tries.values:
                del self._tries[session, owner.nonce]

    def drop_session(self, session: str) -> None:
        for whose in [whose for whose in self._tries if whose[0] == session]:
            del self._tries[whose]

    def _prune(self) -> None:
        now = self._clock()
        for whose, tries in list(self._tries.items()):
            if all(each.deadline <= now for each in tries.values.values()):
                del self._tries[whose]
