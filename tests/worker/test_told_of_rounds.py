"""Devices that wait for a round are told of its end: they go on without asking again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import AgentConfig
from device_agent.observations import Observation, RoundEnded
from server_worker.rounds.decision import beginning
from server_worker.rounds.waiting import (
    HANDED_IN,
    JOINING,
    LAST_TURN,
    LEAST_WAIT_S,
    MOST_IDLE_S,
    MOST_WAIT_S,
    SOON_S,
    WaitingDevice,
)
from server_worker.rounds.watch import RoundWatch
from server_worker.store import SqliteStore
from spliteasy.fleet.record import MOST_VOIDS, RoundRecord
from spliteasy.job.spec import FleetSpec
from testing.cluster import serving
from tests.simulation import toy

FLEET = f"toy@{'ab' * 32}"
SPEC = FleetSpec(mode="splitfed", ends="own", deadline="60s")
NEVER_S = 3600.0


def waits(device: str = "phone-1", **changed: Any) -> WaitingDevice:
    fields: dict[str, Any] = {"round": 1, "last": False, "opened": 0, "spec": SPEC, "device": device}
    return WaitingDevice(fleet=FLEET, session=f"toy.{device}", **{**fields, **changed})


def record(number: int = 0, *cohort: str, **changed: Any) -> RoundRecord:
    first = beginning(cohort, SPEC, seed=1, now=100.0, fleet_key=None)
    return first.model_copy(update={"number": number, **changed})


def test_a_device_goes_on_once_it_is_in_the_round() -> None:
    device = waits()
    assert (device.why(None) or "").startswith(JOINING)
    assert device.why(record(0, "phone-1")) == HANDED_IN
    assert device.why(record(1, "phone-1")) is None
    assert device.why(record(1, "phone-2")) == JOINING
    assert "--resume" in (device.why(record(1, voids=MOST_VOIDS)) or "")


def test_a_device_that_has_ended_waits_for_the_turns_of_others() -> None:
    relay, shared = SPEC.model_copy(update={"mode": "relay"}), SPEC.model_copy(update={"mode": "shared"})
    assert waits(last=True).why(record(1, "phone-2")) is None
    assert waits(last=True, spec=relay).why(record(1, "phone-2")) == LAST_TURN
    assert waits(last=True, spec=relay).why(record(1)) is None
    assert waits(last=True, spec=shared).why(record(1, "phone-2", opened=0)) == LAST_TURN
    assert waits(last=True, spec=shared).why(record(1, "phone-2", opened=1)) is None


@pytest.mark.parametrize(
    ("after", "lasted_s", "expected_s"),
    [
        (None, 0.0, LEAST_WAIT_S),
        (record(0, "phone-1"), 0.0, LEAST_WAIT_S),
        (record(0, "phone-1"), 20.0, 2.0),
        (record(0, "phone-1"), 59.5, 0.5),  # the question after the deadline closes the round
        (record(0, "phone-1"), 59.99, SOON_S),
        (record(0, "phone-1"), 200.0, MOST_WAIT_S),
        (record(0, "phone-2", there=2), 0.0, LEAST_WAIT_S),
        (record(0, "phone-2", there=400), 0.0, 8.0),
        (record(0, "phone-2", there=10**6), 0.0, 15.0),  # within the deadline
    ],
)
def test_how_soon_a_device_asks_by_itself(
    after: RoundRecord | None, lasted_s: float, expected_s: float
) -> None:
    assert waits().asks_after_s(after, 100.0 + lasted_s) == pytest.approx(expected_s)


def test_a_device_that_is_not_in_the_round_asks_now_and_then() -> None:
    long = waits(spec=SPEC.model_copy(update={"deadline": "2h"}))
    assert long.asks_after_s(record(0, "phone-2", there=10**6), 100.0) == MOST_IDLE_S


class Woken:
    """Sessions that were woken, in order."""

    def __init__(self) -> None:
        self.sessions: list[str] = []
        self.looking: dict[str, asyncio.Future[None]] = {}
        self.changed = asyncio.Event()

    def __call__(self, session: str) -> Awaitable[None] | None:
        self.sessions.append(session)
        self.changed.set()
        return self.looking.get(session)

    async def wait_for(self, *sessions: str) -> None:
        while self.sessions != list(sessions):
            self.changed.clear()
            await self.changed.wait()


async def append(store: SqliteStore, newest: RoundRecord | None, *cohort: str) -> RoundRecord:
    number = 0 if newest is None else newest.number + 1
    line = record(number, *cohort)
    previous = None if newest is None else newest.to_json()
    await store.fleets.append_round(FLEET, line.to_json(), number=number, previous=previous)
    return line


async def test_those_in_the_round_are_woken_and_no_others() -> None:
    store, woken = SqliteStore(inline=True), Woken()
    watch = RoundWatch(store, woken, asyncio.get_running_loop().time)
    async with asyncio.timeout(60):
        first = await append(store, None, "phone-1", "phone-2")
        for name in ("phone-1", "phone-2", "phone-3"):
            watch.wait(waits(name), known=0)
        second = await append(store, first, "phone-1", "phone-3")  # by another worker: nobody says so here
        await woken.wait_for("toy.phone-1", "toy.phone-3")
        await append(store, second, "phone-2")
        watch.ended(FLEET)
        await woken.wait_for("toy.phone-1", "toy.phone-3", "toy.phone-2")
    await watch.close()


async def test_one_takes_the_mean_before_the_others_are_woken() -> None:
    store, woken = SqliteStore(inline=True), Woken()
    looks = woken.looking["toy.phone-1"] = asyncio.get_running_loop().create_future()
    watch = RoundWatch(store, woken, asyncio.get_running_loop().time)
    async with asyncio.timeout(60):
        first = await append(store, None, "phone-1", "phone-2")
        for name in ("phone-1", "phone-2"):
            watch.wait(waits(name), known=0)
        await append(store, first, "phone-1", "phone-2")
        await woken.wait_for("toy.phone-1")
        looks.set_result(None)
        await woken.wait_for("toy.phone-1", "toy.phone-2")
    await watch.close()


async def test_a_record_that_came_between_the_look_and_the_wait_is_not_missed() -> None:
    store, woken = SqliteStore(inline=True), Woken()
    watch = RoundWatch(store, woken, asyncio.get_running_loop().time)
    async with asyncio.timeout(60):
        first = await append(store, None, "phone-1")
        await append(store, first, "phone-2", "phone-3")
        watch.wait(waits("phone-2"), known=0)
        await woken.wait_for("toy.phone-2")
        watch.wait(waits("phone-1"), known=1)
        watch.wait(waits("phone-3"), known=0)
        await woken.wait_for("toy.phone-2", "toy.phone-3")
    await watch.close()


async def train_without_asking(
    variant: toy.Variant, folder: Path, monkeypatch: pytest.MonkeyPatch, **where: Any
) -> dict[str, list[int]]:
    """Train a fleet whose devices never ask again: the rounds of each, as it was told."""
    monkeypatch.setattr(WaitingDevice, "asks_after_s", lambda *_: NEVER_S)
    job, ended = toy.job(variant), dict[str, list[int]]()

    def observe(observation: Observation) -> None:
        if isinstance(observation, RoundEnded):
            ended.setdefault(observation.device, []).append(observation.round)

    async with serving(job, workers=2, **where) as cluster, asyncio.TaskGroup() as group:
        for device in toy.FLEET:
            config = AgentConfig(
                job=f"{job.name}@{job.digest}",
                device=device,
                data=toy.DATA,
                state=folder / device,
                fleet_key=bytes(range(32)) if job.spec.fleet.ends_leave else None,
            )
            group.create_task(cluster.train(config, observe=observe))
    return ended


ALL = {
    "rounds": replace(toy.PLAIN_FLEET, fleet=(*toy.ROUNDS, ("aggregate", "plain"), ("devices_per_round", 3))),
    "windows": toy.PLAIN_SHARED,
    "turns": toy.PLAIN_RELAY,
}


@pytest.mark.parametrize("variant", ALL.values(), ids=ALL)
async def test_a_fleet_of_two_workers_needs_no_questions(
    variant: toy.Variant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await train_without_asking(variant, tmp_path, monkeypatch)
    assert sorted(told) == list(toy.FLEET)


@pytest.mark.rabbitmq
@pytest.mark.redis
async def test_devices_are_told_over_rabbitmq(
    rabbitmq_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await train_without_asking(
        ALL["rounds"], tmp_path, monkeypatch, broker=rabbitmq_url, store=redis_url
    )
    assert sorted(told) == list(toy.FLEET)
