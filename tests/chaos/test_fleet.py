"""One model from three agents while agents, workers, broker and store die: the same bits at the end."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from deploy.nodes.redis_server import AppendFsync
from server_worker.store import open_store
from tests.chaos import toy
from tests.chaos.device_faults import DEVICE_FAULTS
from tests.chaos.fleet import judge_fleet, new_fleet
from tests.chaos.record import Record
from tests.chaos.run import Plan, play
from tests.chaos.scene import Scene, until
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.stack import Stack
from tests.chaos.worker_faults import WORKER_FAULTS

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis, pytest.mark.long]
BEGIN_S, FINISH_S = 120.0, 300.0
KILLS = ("worker killed", "agent killed, restarted", "RabbitMQ killed, restarted", "all workers killed")


@pytest.mark.parametrize(
    ("job", "appendfsync", "store_fault"),
    [
        (toy.SPLITFED, "everysec", "Redis lost its last second"),
        (toy.SHARED, "always", "Redis killed, restarted"),
        (toy.RELAY, "always", "Redis killed, restarted"),
    ],
)
def test_a_fleet_that_is_killed_in_all_its_parts_has_the_bits_of_the_plain_program(
    tmp_path: Path, job: str, appendfsync: AppendFsync, store_fault: str
) -> None:
    record, found, rounds = asyncio.run(_play(tmp_path, job, appendfsync, store_fault))
    assert record.violations == [], "\n".join(record.history)
    assert found == [], "\n".join(record.history)
    assert rounds > 0
    assert set(record.faults) == {*KILLS, store_fault}


def test_fleets_in_every_mode_have_the_bits_of_the_plain_program_whatever_is_killed(tmp_path: Path) -> None:
    report = asyncio.run(play(Plan(seed=2, seconds=90, devices=1, fleets=True), tmp_path))
    assert report.passed, "\n".join(report.record.history)
    assert report.fleets


async def _play(
    folder: Path, job: str, appendfsync: AppendFsync, store_fault: str
) -> tuple[Record, list[str], int]:
    record = Record()
    async with Stack(folder, record, workers=2, appendfsync=appendfsync) as stack:
        fleet = await new_fleet(stack)
        scene = Scene(stack, fleet.devices)
        training = asyncio.create_task(fleet.train(job))
        try:
            assert await until(lambda: bool(record.newest), BEGIN_S), record.history
            await _kill(scene, store_fault)
            await asyncio.wait({training}, timeout=FINISH_S)
            if not training.done():
                record.violate(f"the fleet did not finish within {FINISH_S:.0f} s")
                return record, [], 0
        finally:
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)
        store = await open_store(stack.redis.url)
        try:
            return record, *(await judge_fleet(store, fleet.devices, job))
        finally:
            await store.close()


async def _kill(scene: Scene, store_fault: str) -> None:
    rng, device = random.Random(1), scene.devices[0]
    for kind in KILLS[:2]:
        if kind in WORKER_FAULTS:
            await WORKER_FAULTS[kind](scene, rng, kind)
        else:
            await DEVICE_FAULTS[kind](scene, rng, kind, device)
    await SERVER_FAULTS[store_fault](scene, rng, store_fault)
    await SERVER_FAULTS[KILLS[2]](scene, rng, KILLS[2])
    await WORKER_FAULTS[KILLS[3]](scene, rng, KILLS[3])
