"""A fleet's rounds in every store: a chain that only grows, and weights that are written once."""

from __future__ import annotations

import asyncio

import pytest

from server_worker.store import Store

FLEET = f"digits@{'ab' * 32}"
BODY = bytes(range(256)) * 9000  # more than one piece


async def test_records_are_appended_only_to_the_chain_that_is_there(store: Store) -> None:
    fleets = store.fleets
    assert await fleets.newest_round(FLEET) is None
    assert await fleets.append_round(FLEET, b"one", number=1, previous=b"zero") is None
    assert await fleets.append_round(FLEET, b"zero", number=0, previous=None) == b"zero"
    assert await fleets.append_round(FLEET, b"other", number=0, previous=None) == b"zero", (
        "the first one stands"
    )
    assert await fleets.append_round(FLEET, b"one", number=1, previous=b"another zero") is None
    assert await fleets.append_round(FLEET, b"one", number=1, previous=b"zero") == b"one"
    assert await fleets.append_round(FLEET, b"one", number=1, previous=b"zero") == b"one", "a repeat"
    assert await fleets.newest_round(FLEET) == b"one"
    assert list(await fleets.rounds(FLEET)) == [b"zero", b"one"]
    assert list(await fleets.rounds(FLEET, after=0)) == [b"one"]
    assert list(await fleets.rounds(FLEET, after=1)) == []
    assert await fleets.newest_round("other@00") is None


async def test_of_many_who_decide_at_once_one_does(store: Store) -> None:
    lines = [f"worker {n}".encode() for n in range(8)]
    found = await asyncio.gather(
        *(store.fleets.append_round(FLEET, line, number=0, previous=None) for line in lines)
    )
    assert len(set(found)) == 1
    assert found[0] in lines


async def test_weights_are_written_once(store: Store) -> None:
    fleets = store.fleets
    assert await fleets.put_weights(FLEET, "1/a", BODY, digest="d1") == "d1"
    assert await fleets.put_weights(FLEET, "1/a", b"other", digest="d2") == "d1"
    assert await fleets.read_weights(FLEET, "1/a") == BODY
    assert await fleets.put_weights(FLEET, "1/", b"mean", digest="d3") == "d3"
    assert await fleets.weights(FLEET) == {"1/": "d3", "1/a": "d1"}
    await fleets.drop_weights(FLEET, ["1/a", "never there"])
    assert await fleets.weights(FLEET) == {"1/": "d3"}
    with pytest.raises(KeyError):
        await fleets.read_weights(FLEET, "1/a")
    assert await fleets.put_weights(FLEET, "1/a", b"other", digest="d2") == "d2"
    assert await fleets.read_weights(FLEET, "1/a") == b"other"


async def test_a_record_is_made_only_where_its_weights_are(store: Store) -> None:
    fleets = store.fleets
    assert await fleets.append_round(FLEET, b"zero", number=0, previous=None, weights=("1/a",)) is None
    assert await fleets.append_round(FLEET, b"zero", number=0, previous=None) == b"zero"
    await fleets.put_weights(FLEET, "1/a", BODY, digest="d1")
    both = ("1/a", "1/b")
    assert await fleets.append_round(FLEET, b"one", number=1, previous=b"zero", weights=both) is None
    await fleets.put_weights(FLEET, "1/b", b"other", digest="d2")
    assert await fleets.append_round(FLEET, b"one", number=1, previous=b"zero", weights=both) == b"one"


async def test_weights_are_dropped_only_where_there_is_what_they_led_to(store: Store) -> None:
    fleets = store.fleets
    await fleets.put_weights(FLEET, "1/a", BODY, digest="d1")
    await fleets.drop_weights(FLEET, ["1/a"], needs=["1/"])
    assert await fleets.weights(FLEET) == {"1/a": "d1"}
    await fleets.put_weights(FLEET, "1/", b"mean", digest="d2")
    await fleets.drop_weights(FLEET, ["1/a"], needs=["1/"])
    assert await fleets.weights(FLEET) == {"1/": "d2"}


async def test_members_are_what_was_said_last_and_all_is_forgotten_together(store: Store) -> None:
    fleets = store.fleets
    assert await fleets.members(FLEET) == {}
    await fleets.put_member(FLEET, "b", b"here")
    await fleets.put_member(FLEET, "a", b"here")
    await fleets.put_member(FLEET, "b", b"gone")
    assert await fleets.members(FLEET) == {"a": b"here", "b": b"gone"}
    assert await fleets.members(FLEET, ("b", "never-there")) == {"b": b"gone"}
    assert await fleets.members(FLEET, ()) == {}
    await fleets.append_round(FLEET, b"zero", number=0, previous=None)
    await fleets.put_weights(FLEET, "1/a", BODY, digest="d1")
    assert await fleets.forget(FLEET)
    assert not await fleets.forget(FLEET)
    assert await fleets.members(FLEET) == {}
    assert await fleets.weights(FLEET) == {}
    assert await fleets.newest_round(FLEET) is None
