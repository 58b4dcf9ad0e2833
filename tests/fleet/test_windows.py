"""The windows of a shared body: who is in the next one, and when a round of them has ended."""

from __future__ import annotations

from typing import Any

from server_worker.rounds.decision import next_record
from spliteasy.fleet.record import HandedIn, Member, RoundRecord
from spliteasy.job.spec import FleetSpec


def spec(**changed: Any) -> FleetSpec:
    return FleetSpec(mode="shared", deadline="60s", **changed)


OPEN = {"aggregate": "plain"}


def waits(seen: float = 50.0, since: float = 0.0) -> Member:
    return Member(seen=seen, since=since, done=False)


def handed_in(window: int, *, whole: bool = False, samples: int = 4) -> Member:
    handed = HandedIn(
        samples=4, round_samples=samples, whole=whole, first=window - 1, last=window, digest="ab" * 32
    )
    return Member(seen=50.0, done=False, round=window, handed=handed)


def decide(
    newest: RoundRecord | None, members: dict[str, Member], fleet: FleetSpec, now: float = 50.0
) -> RoundRecord:
    record = next_record(newest, members, fleet, seed=1, now=now, may_expire=True)
    assert record is not None
    return record


def test_devices_go_on_until_each_has_ended_its_round_and_then_ends_are_averaged() -> None:
    fleet, there = spec(**OPEN), {device: waits() for device in "abc"}
    record = decide(None, there, fleet)
    assert (record.cohort, record.rest) == (("a", "b", "c"), ())
    record = decide(record, {device: handed_in(1) for device in "abc"}, fleet)
    assert (record.cohort, record.opened, record.ends_base, record.steps) == (("a", "b", "c"), 0, 0, 1)
    both = {"a": handed_in(2, whole=True, samples=8), "b": handed_in(2), "c": handed_in(2)}
    record = decide(record, both, fleet)
    assert (record.cohort, record.opened, record.ends_base) == (("b", "c"), 0, 0), "a has ended its round"
    rest = {device: handed_in(3, whole=True, samples=12) for device in "bc"}
    record = decide(record, {"a": waits(), **rest}, fleet)
    assert (record.opened, record.ends_base, record.steps) == (3, 3, 3)
    assert {device: each.samples for device, each in record.ended.items()} == {"a": 8, "b": 12, "c": 12}
    assert {device: each.window for device, each in record.ended.items()} == {"a": 2, "b": 3, "c": 3}
    assert record.drawn == 3
    assert record.cohort == ("a", "b", "c"), "the next round begins with all again"


def test_windows_of_one_take_the_devices_of_a_round_in_turn() -> None:
    fleet, there = spec(window=1, **OPEN), {device: waits() for device in "abc"}
    record = decide(None, there, fleet)
    turns = []
    for window in range(1, 4):
        assert len(record.cohort) == 1
        turns += record.cohort
        assert record.drawn_for_next == 3
        record = decide(record, {**there, turns[-1]: handed_in(window, whole=True)}, fleet)
    assert sorted(turns) == ["a", "b", "c"], "each has had its turn"
    assert (record.opened, record.ends_base, len(record.ended)) == (3, 3, 3)
    assert len(record.cohort) + len(record.rest) == 3


def test_who_misses_a_window_is_out_of_its_round() -> None:
    fleet = spec(**OPEN)
    first = decide(None, {device: waits(0.0) for device in "abc"}, fleet, now=0.0)
    late = decide(first, {"a": handed_in(1), "b": handed_in(1), "c": waits(59.0)}, fleet, now=61.0)
    assert (tuple(late.participants), late.void, late.cohort) == (("a", "b"), False, ("a", "b"))
    ended = {device: handed_in(2, whole=True) for device in "ab"}
    record = decide(late, {**ended, "c": waits(60.0)}, fleet, now=62.0)
    assert sorted(record.ended) == ["a", "b"]
    assert record.cohort == ("a", "b", "c"), "it is there again in the next round"


def test_a_window_below_its_quorum_moves_nothing_and_ends_the_round_of_its_devices() -> None:
    fleet = spec(window=2, quorum=1.0, **OPEN)
    first = decide(None, {device: waits(0.0) for device in "abcd"}, fleet, now=0.0)
    one, other = first.cohort
    there = {device: waits(59.0) for device in "abcd"}
    void = decide(first, {**there, one: handed_in(1)}, fleet, now=61.0)
    assert (void.void, void.steps, void.base) == (True, 0, 0)
    assert set(void.cohort) == set(first.rest), "the round goes on with those who have not had their turn"
    assert other not in void.cohort


def test_the_ends_of_too_few_devices_are_not_averaged() -> None:
    fleet = spec()  # sealed: three devices at least
    first = decide(None, {device: waits(0.0) for device in "abc"}, fleet, now=0.0)
    handed = {device: handed_in(1, whole=True) for device in "ab"}
    record = decide(first, {**handed, "c": waits(0.0)}, fleet, now=61.0)
    assert (record.void, record.base, record.opened, record.ends_base) == (False, 1, 1, 0)


def test_by_arrival_those_who_have_waited_longest_come_first() -> None:
    fleet = spec(window=1, order="arrival", **OPEN)
    since = {"a": 30.0, "b": 10.0, "c": 20.0}
    there = {device: waits(since=at) for device, at in since.items()}
    record = decide(None, there, fleet)
    assert (record.cohort, record.rest) == (("b",), ("c", "a"))
    there["c"] = waits(since=40.0)  # it was away meanwhile
    record = decide(record, {**there, "b": handed_in(1, whole=True)}, fleet)
    assert (record.cohort, record.rest) == (("a",), ("c",)), "the order is of when the window is decided"


def test_by_arrival_a_turn_goes_to_whoever_has_waited_longest() -> None:
    fleet = FleetSpec(mode="relay", deadline="60s", order="arrival")
    there = {"a": waits(since=30.0), "b": waits(since=10.0), "c": waits(since=20.0)}
    record = decide(None, there, fleet)
    assert record.cohort == ("b",)
    there["b"] = handed_in(1, whole=True).model_copy(update={"since": 45.0})
    assert decide(record, there, fleet).cohort == ("c",)
