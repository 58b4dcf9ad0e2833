"""Requests of the open step that wait for their turn.

The micro-batches of a step are computed in order: forward m after forward m - 1, backward m after its
forward and backward m - 1. What comes earlier (others were lost, or are on another way) waits here, and
the device is told what is absent.
"""

from __future__ import annotations

from typing import Literal

from broker.protocol import messages as m
from server_worker.store import Blob

MOST_TOLD = 64
"""A step may have a thousand micro-batches, and one small ASK must not be answered by as many MISSING."""

Kind = Literal["FORWARD", "BACKWARD"]
PartKey = tuple[Kind, int]
"""A request of a step: its kind and micro-batch."""

MAX_BYTES = 512 << 20
"""The bytes of one session that may wait."""


class MemoryBudget:
    """The bytes that may wait, over all sessions of a worker."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.taken_bytes = 0

    def has(self, nbytes: int) -> bool:
        return self.taken_bytes + nbytes <= self.limit_bytes


class ReorderBuffer:
    """The waiting requests of one session's open step. `forwarded` and `returned` count the forwards and
    backwards that were computed."""

    def __init__(self, memory_budget: MemoryBudget) -> None:
        self._memory_budget = memory_budget
        self._held: dict[PartKey, tuple[m.Forward | m.Backward, Blob]] = {}
        self._told: set[PartKey] = set()
        self.nbytes = 0

    def add(self, request: m.Forward | m.Backward, raw: Blob, forwarded: int, returned: int) -> bool:
        """Hold a request, instead of an earlier one in its place. False: it would have to wait, and there is
        no room; it is dropped, and missing when it is asked about.
        """
        self._pop((request.kind, request.micro))
        due = forwarded if request.kind == "FORWARD" else returned if returned < forwarded else None
        if request.micro != due and (
            self.nbytes + len(raw) > MAX_BYTES or not self._memory_budget.has(len(raw))
        ):
            return False
        self._held[request.kind, request.micro] = request, raw
        self._count(len(raw))
        return True

    def take(self, forwarded: int, returned: int) -> tuple[m.Forward | m.Backward, Blob] | None:
        """The request whose turn it is."""
        backward = self._pop(("BACKWARD", returned)) if returned < forwarded else None
        return backward or self._pop(("FORWARD", forwarded))

    def absent(self, place: PartKey, forwarded: int, returned: int, *, news: bool = False) -> list[PartKey]:
        """Return what is absent and has to be computed before `place`, and `place` itself if it is absent.

        `news` asks only for what this has not said before. The first `MOST_TOLD` are named: when they have
        come, the device asks again.
        """
        kind, micro = place
        needed: list[PartKey] = [("FORWARD", n) for n in range(forwarded, micro + 1)]
        if kind == "BACKWARD":
            needed += [("BACKWARD", n) for n in range(returned, micro + 1)]
        absent = [each for each in needed if each not in self._held and not (news and each in self._told)]
        del absent[MOST_TOLD:]
        self._told.update(absent)
        return absent

    def holds(self, request: str) -> bool:
        """Return whether the request of that id waits."""
        return any(held.request == request for held, _ in self._held.values())

    def clear(self) -> None:
        """Forget the step: it is over, or begins again."""
        self._held.clear()
        self._told.clear()
        self._count(-self.nbytes)

    def _pop(self, place: PartKey) -> tuple[m.Forward | m.Backward, Blob] | None:
        found = self._held.pop(place, None)
        if found is not None:
            self._count(-len(found[1]))
        return found

    def _count(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self._memory_budget.taken_bytes += nbytes
