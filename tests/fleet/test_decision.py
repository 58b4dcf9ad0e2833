"""When a round ends, who counts, and who is drawn for the next: the decisions that are put on record."""

from __future__ import annotations

from typing import Any

import pytest

from server_worker.rounds.decision import next_record
from spliteasy.errors import StoreError
from spliteasy.fleet.record import MOST_VOIDS, HandedIn, Member, RoundRecord
from spliteasy.job.spec import FleetSpec

DEADLINE_S = 60.0


def spec(**changed: Any) -> FleetSpec:
    return FleetSpec(mode="splitfed", ends="own", deadline="60s", **changed)


def waits(seen: float = 0.0, *, key: str | None = None, done: bool = False) -> Member:
    return Member(seen=seen, done=done, fleet_key=key)


def handed_in(round_: int, samples: int = 10, *, seen: float = 10.0, done: bool = False) -> Member:
    handed = HandedIn(samples=samples, first=0, last=4, digest="ab" * 32)
    return Member(seen=seen, done=done, round=round_, handed=handed)


def decide(
    newest: RoundRecord | None,
    members: dict[str, Member],
    fleet: FleetSpec,
    now: float,
    *,
    expire: bool = True,
) -> RoundRecord | None:
    return next_record(newest, members, fleet, seed=1, now=now, may_expire=expire)


def began(fleet: FleetSpec, *devices: str) -> RoundRecord:
    record = decide(None, {device: waits() for device in devices}, fleet, 0.0)
    assert record is not None
    return record


def test_the_first_round_waits_for_as_many_devices_as_it_is_to_have() -> None:
    fleet = spec(devices_per_round=2)
    assert decide(None, {"a": waits()}, fleet, 1.0) is None
    record = decide(None, {"b": waits(), "a": waits()}, fleet, 1.0)
    assert record is not None
    assert (record.number, record.cohort, record.base, record.previous) == (0, ("a", "b"), 0, "")
    assert decide(None, {"a": waits()}, spec(quorum=2), 1.0) is None
    assert decide(None, {"a": waits()}, spec(), 1.0) is not None


def test_a_round_closes_once_all_have_handed_in() -> None:
    fleet = spec()
    first = began(fleet, "a", "b")
    assert decide(first, {"a": handed_in(1), "b": waits()}, fleet, 20.0) is None
    record = decide(first, {"a": handed_in(1), "b": handed_in(1, 30)}, fleet, 20.0)
    assert record is not None
    assert record.weights == {"a": 10, "b": 30}
    assert (record.number, record.base, record.void) == (1, 1, False)
    assert record.previous == first.digest
    assert record.cohort == ("a", "b")


def test_equal_weights_count_every_device_that_trained_as_one() -> None:
    fleet = spec(weights="equal")
    record = decide(began(fleet, "a", "b"), {"a": handed_in(1, 500), "b": handed_in(1, 0)}, fleet, 20.0)
    assert record is not None
    assert record.weights == {"a": 1, "b": 0}


def test_who_misses_the_deadline_is_left_out_and_the_round_waits_no_longer() -> None:
    fleet = spec(quorum=0.5)
    first = began(fleet, "a", "b")
    members = {"a": handed_in(1), "b": waits(seen=-1.0)}
    assert decide(first, members, fleet, DEADLINE_S - 1) is None
    assert decide(first, members, fleet, DEADLINE_S, expire=False) is None, "after an outage it has a grace"
    record = decide(first, members, fleet, DEADLINE_S)
    assert record is not None
    assert list(record.participants) == ["a"]
    assert record.cohort == ("a",), "b was not heard of for a whole deadline"


def test_below_its_quorum_a_round_is_void_and_nothing_moves() -> None:
    fleet = spec(quorum=2)
    first = began(fleet, "a", "b", "c")
    record = decide(first, {"a": handed_in(1)}, fleet, DEADLINE_S)
    assert record is not None
    assert record.void
    assert (record.number, record.base, record.participants) == (1, 0, {})
    again = decide(record, {"a": handed_in(2, seen=100.0)}, fleet, 3 * DEADLINE_S)
    assert again is not None
    assert (again.number, again.base) == (2, 0), "the mean goes on from where it was"


def test_a_round_in_which_nobody_trained_is_void() -> None:
    fleet = spec()
    record = decide(began(fleet, "a"), {"a": handed_in(1, 0)}, fleet, 20.0)
    assert record is not None
    assert record.void


def test_a_device_that_comes_later_begins_with_the_next_round() -> None:
    fleet = spec()
    first = began(fleet, "a")
    record = decide(first, {"a": handed_in(1), "late": waits(seen=19.0)}, fleet, 20.0)
    assert record is not None
    assert list(record.participants) == ["a"]
    assert record.cohort == ("a", "late")


def test_what_was_handed_in_for_another_round_does_not_count() -> None:
    fleet = spec()
    first = began(fleet, "a")
    assert decide(first, {"a": handed_in(2)}, fleet, 20.0) is None
    assert decide(first, {"a": waits(), "b": handed_in(1)}, fleet, 20.0) is None, "b was not drawn for it"


def test_a_fleet_that_has_ended_begins_again_when_a_device_comes() -> None:
    fleet = spec()
    ended = decide(began(fleet, "a"), {"a": handed_in(1, done=True)}, fleet, 20.0)
    assert ended is not None
    assert ended.cohort == ()
    assert decide(ended, {"a": handed_in(1, done=True)}, fleet, 21.0) is None
    again = decide(ended, {"new": waits(seen=30.0)}, fleet, 30.0)
    assert again is not None
    assert (again.void, again.base, again.cohort) == (True, 1, ("new",))


def test_the_draw_is_of_the_seed_and_of_who_is_there_and_changes_by_round() -> None:
    fleet = spec(devices_per_round=3)
    members = {f"phone-{n}": waits() for n in range(9)}
    first = decide(None, members, fleet, 0.0)
    assert first is not None
    assert len(first.cohort) == 3
    assert first == decide(None, dict(reversed(members.items())), fleet, 0.0)
    cohorts, newest = {first.cohort}, first
    for _ in range(8):
        ready = {device: handed_in(newest.number + 1) for device in newest.cohort}
        drawn = decide(newest, {**members, **ready}, fleet, 20.0)
        assert drawn is not None
        cohorts.add(drawn.cohort)
        newest = drawn
    assert len(cohorts) > 3


def test_the_key_of_most_devices_counts_and_others_are_not_drawn() -> None:
    mine, theirs = "aa" * 8, "bb" * 8
    members = {"a": waits(key=theirs), "b": waits(key=mine), "c": waits(key=mine)}
    record = decide(None, members, spec(devices_per_round=3), 0.0)
    assert record is not None
    assert record.fleet_key == mine
    assert record.cohort == ("b", "c")


def test_records_are_a_chain_that_names_all_before_it() -> None:
    fleet = spec()
    one = decide(began(fleet, "a"), {"a": handed_in(1)}, fleet, 20.0)
    other = decide(began(fleet, "a"), {"a": handed_in(1)}, fleet, 20.5)
    assert one is not None
    assert other is not None
    assert RoundRecord.from_json(one.to_json()) == one
    assert one.digest != other.digest
    with pytest.raises(StoreError, match="can't be read"):
        RoundRecord.from_json(b'{"number": -1}')


def relay() -> FleetSpec:
    return FleetSpec(mode="relay", deadline="60s")


def test_turns_go_round_in_the_order_of_names_and_count_everybodys_steps() -> None:
    fleet, there = relay(), {device: waits(seen=5.0) for device in ("b", "a", "c")}
    record = decide(None, there, fleet, 0.0)
    assert record is not None
    assert record.cohort == ("a",)
    for number, (device, after) in enumerate((("a", "b"), ("b", "c"), ("c", "a")), start=1):
        assert decide(record, there, fleet, 20.0) is None, "nobody has handed over"
        record = decide(record, {**there, device: handed_in(number)}, fleet, 20.0)
        assert record is not None
        assert (record.number, record.base, record.cohort) == (number, number, (after,))
        assert (record.weights, record.steps) == ({device: 1}, 4 * number)


def test_a_turn_that_is_not_handed_in_is_void_and_the_next_device_has_it() -> None:
    fleet = relay()
    first = decide(None, {device: waits() for device in ("a", "b")}, fleet, 0.0)
    assert first is not None
    late = decide(first, {"a": waits(seen=0.0), "b": waits(seen=59.0)}, fleet, 61.0)
    assert late is not None
    assert (late.void, late.base, late.steps, late.cohort) == (True, 0, 0, ("b",))
    ended = decide(late, {"a": waits(seen=0.0), "b": handed_in(2, done=True)}, fleet, 70.0)
    assert ended is not None
    assert (ended.base, ended.cohort) == (2, ()), "who is not there has no turn"


def test_too_many_void_rounds_pause_a_fleet_until_a_person_lets_it_go_on() -> None:
    fleet = spec(quorum=2)
    record = began(fleet, "a", "b")
    for number in range(1, MOST_VOIDS + 1):
        now = number * 61.0
        after = decide(record, {"a": waits(seen=now), "b": waits(seen=now)}, fleet, now)
        assert after is not None
        assert (after.void, after.voids) == (True, number)
        record = after
    assert record.paused
    assert record.cohort == ()
    there = {"a": waits(seen=now), "b": waits(seen=now)}
    assert decide(record, there, fleet, now + 100.0) is None
    again = next_record(record, there, fleet, seed=1, now=now, may_expire=True, resumed=True)
    assert again is not None
    assert (again.cohort, again.voids, again.paused, again.base) == (("a", "b"), 0, False, 0)
    handed = {"a": handed_in(again.number + 1), "b": handed_in(again.number + 1)}
    good = decide(again, handed, fleet, now + 5.0)
    assert good is not None
    assert (good.void, good.voids) == (False, 0)
