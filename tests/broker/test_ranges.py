"""Sets of byte ranges do what sets of integers do."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.ranges import ByteRanges

POSITION = st.integers(0, 60)
RANGES = st.lists(st.tuples(POSITION, POSITION), max_size=12)


def positions(ranges: ByteRanges) -> set[int]:
    return {position for begin, end in ranges for position in range(begin, end)}


@given(added=RANGES, removed=RANGES)
def test_adding_and_removing(added: list[tuple[int, int]], removed: list[tuple[int, int]]) -> None:
    ranges, expected = ByteRanges(added), set[int]()
    for begin, end in added:
        expected |= set(range(begin, end))
    for begin, end in removed:
        ranges.remove(begin, end)
        expected -= set(range(begin, end))
    assert positions(ranges) == expected
    assert ranges.nbytes == len(expected)
    assert all(first[1] < second[0] for first, second in pairwise(ranges)), "neighbours are joined"
    assert ByteRanges(ranges).nbytes == ranges.nbytes


@given(RANGES, POSITION, POSITION)
def test_questions(added: list[tuple[int, int]], begin: int, end: int) -> None:
    ranges = ByteRanges(added)
    held = positions(ranges)
    asked = set(range(begin, end))
    assert positions(ByteRanges(ranges.within(begin, end))) == held & asked
    assert ranges.covers(begin, end) == (asked <= held)
    assert positions(ByteRanges(ranges.gaps(end))) == set(range(end)) - held
    assert len(ranges) == len(list(ranges))
