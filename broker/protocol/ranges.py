"""Sets of bytes, as ranges: what has arrived of a message, and what is still to be sent."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""The first byte and one past the last."""


class ByteRanges:
    """A set of byte positions, kept as ascending ranges that neither overlap nor touch."""

    def __init__(self, ranges: Iterable[Iterable[int]] = ()) -> None:
        """The union of `ranges`, which may overlap and come in any order; empty ones add nothing."""
        self._begins: list[int] = []
        self._ends: list[int] = []
        for begin, end in ranges:
            self.add(begin, end)

    def __iter__(self) -> Iterator[Range]:
        """The ranges in ascending order."""
        return zip(self._begins, self._ends, strict=True)

    def __len__(self) -> int:
        """The number of separate ranges."""
        return len(self._begins)

    @property
    def nbytes(self) -> int:
        """The number of positions in the set."""
        return sum(self._ends) - sum(self._begins)

    def add(self, begin: int, end: int) -> None:
        """Add the positions from `begin` to before `end`."""
        if begin >= end:
            return
        first = bisect_left(self._ends, begin)  # the first range that overlaps or touches
        after = bisect_right(self._begins, end)
        if first < after:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[after - 1])
        self._begins[first:after] = [begin]
        self._ends[first:after] = [end]

    def remove(self, begin: int, end: int) -> None:
        """Take out the positions from `begin` to before `end`."""
        if begin >= end or not self._ends:
            return
        kept = [*self.within(0, begin), *self.within(end, self._ends[-1])]
        self._begins = [first for first, _ in kept]
        self._ends = [last for _, last in kept]

    def within(self, begin: int, end: int) -> Iterator[Range]:
        """The parts of the set that lie from `begin` to before `end`, in ascending order."""
        for index in range(bisect_right(self._ends, begin), len(self._begins)):
            if self._begins[index] >= end:
                return
            yield max(begin, self._begins[index]), min(end, self._ends[index])

    def covers(self, begin: int, end: int) -> bool:
        """Return whether every position from `begin` to before `end` is in the set."""
        return begin >= end or next(self.within(begin, end), None) == (begin, end)

    def gaps(self, end: int) -> Iterator[Range]:
        """The ranges from 0 to before `end` that are not in the set, in ascending order."""
        done = 0
        for first, last in self.within(0, end):
            if first > done:
                yield done, first
            done = last
        if done < end:
            yield done, end
