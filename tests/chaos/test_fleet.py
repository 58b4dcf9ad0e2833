"""One model from three agents while agents, workers, broker and store die: the same bits at the end."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from deploy.nodes.redis_server import AppendFsync
from device_agent.state_folder import StateFolder
from server_worker.store import open_store
from spliteasy.fleet.record import RoundRecord
from tests.chaos import toy
from tests.chaos.device import PROFILE, Device, Training
from tests.chaos.device_faults import DEVICE_FAULTS
from tests.chaos.judge import replayed
from tests.chaos.record import Record
from tests.chaos.scene import Scene, until
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.stack import Stack
from tests.chaos.worker_faults import WORKER_FAULTS
from tests.simulation import fleet, shared_fleet

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis, pytest.mark.long]
DEVICES = ("phone-1", "phone-2", "phone-3")
BEGIN_S, FINISH_S = 120.0, 300.0
KILLS = ("worker killed", "agent killed, restarted", "RabbitMQ killed, restarted", "all workers killed")


@pytest.mark.parametrize(
    ("job", "appendfsync", "store_fault"),
    [
        (toy.SPLITFED, "everysec", "Redis lost its last second"),
        (toy.SHARED, "always", "Redis killed, restarted"),
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


async def _play(
    folder: Path, job: str, appendfsync: AppendFsync, store_fault: str
) -> tuple[Record, list[str], int]:
    record = Record()
    async with Stack(folder, record, workers=2, appendfsync=appendfsync) as stack:
        devices = [await _device(stack, slot) for slot in range(len(DEVICES))]
        scene = Scene(stack, devices)
        trainings = [
            asyncio.create_task(device.train(Training(name, job)))
            for name, device in zip(DEVICES, devices, strict=True)
        ]
        try:
            began = await until(lambda: len(record.newest) == len(DEVICES), BEGIN_S)
            assert began, record.history
            await _kill(scene, store_fault)
            _, late = await asyncio.wait(trainings, timeout=FINISH_S)
            if late:
                record.violate(f"{len(late)} trainings did not finish within {FINISH_S:.0f} s")
                return record, [], 0
        finally:
            for task in trainings:
                task.cancel()
            await asyncio.gather(*trainings, return_exceptions=True)
        return record, *(await _judge(scene, job))


async def _device(stack: Stack, slot: int) -> Device:
    link = await stack.link(ports=2, seed=slot)
    link.set_profile(PROFILE)
    key = stack.folder / "fleet.key"
    key.write_text(fleet.FLEET_KEY.hex())
    key.chmod(0o600)
    options = ("--fleet-key", str(key))
    return Device(slot=slot, first=slot + 1, stack=stack, link=link, port=link.port, options=options)


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


async def _judge(scene: Scene, name: str) -> tuple[list[str], int]:
    """What is wrong, by the plain program on the recorded decisions, and how many rounds were not void."""
    job, secrets, checkpoints = toy.job(name), [], {}
    for training, device in ((each.finished[0], each) for each in scene.devices):
        with StateFolder(device.state_of(training)) as state:
            secrets.append(state.secret())
            step = state.held()[-1]
            checkpoints[training.device] = step, state.load_checkpoint(step)
    case = fleet.Case(job, toy.DATA, DEVICES, tuple(secrets))
    store = await open_store(scene.stack.redis.url)
    try:
        lines = await store.fleets.rounds(f"{name}@{job.digest}")
        records = [RoundRecord.from_json(line) for line in lines]
        taken, ended = [], {}
        for device, (step, checkpoint) in checkpoints.items():
            trainer, _ = fleet.sides(case, device)
            trainer.load_state(checkpoint, step=step)
            body, committed = await replayed(store, Training(device, name))
            assert committed == step
            number = trainer.rounds.place.round - 1
            taken.append(fleet.Taken(device, number, records[number].digest))
            ended[device] = fleet.averaged(trainer, body)
    finally:
        await store.close()
    judge = shared_fleet.judge if job.spec.fleet.shares_body else fleet.judge
    return judge(case, records, taken, ended), sum(not each.void for each in records[1:])
