"""One run of chaos: start all, let faults happen, heal, let the trainings finish, compare."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from broker.transport.topology import QueueType
from deploy.nodes.redis_server import AppendFsync
from server_worker.store import open_store
from tests.chaos.device import PROFILE, Device
from tests.chaos.device_faults import DEVICE_FAULTS, StrikeDevice
from tests.chaos.fleet import Fleet, judge_fleet, new_fleet
from tests.chaos.judge import judge, undisturbed
from tests.chaos.record import Record
from tests.chaos.scene import Scene, Strike, until
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.stack import Stack
from tests.chaos.worker_faults import WORKER_FAULTS

BEGIN_S = 120.0
FINISH_S = 300.0
"""A training may take this long to its end once nothing is wrong any more."""

GAP_S = 6.0
NEEDS_EVERYSEC = frozenset({"Redis lost its last second"})

Fault = Callable[[random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The plan of a run. All that is random about the faults comes from `seed`."""

    seed: int
    seconds: float | None
    """Faults happen for this long; None: until each kind has happened once."""
    devices: int = 2
    workers: int = 2
    appendfsync: AppendFsync = "everysec"
    queues: QueueType | None = None
    """The type of the workers' queues; None: drawn by the seed."""
    gap_s: float = GAP_S
    """Mean pause between two faults of a lane. There is a lane a device, and two more."""
    fleets: bool = False
    """Three more devices train fleets, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a run."""

    record: Record
    differences: Mapping[str, float]
    """The differences of each session."""
    bytes_needed: int
    """The bytes that FORWARDs and BACKWARDs of all finished trainings take, each sent once; those of fleets
    apart."""
    fleets: Sequence[str] = ()
    """The jobs of the fleets that were trained to their end and judged."""

    @property
    def max_abs_diff(self) -> float:
        return max(self.differences.values(), default=float("inf"))

    @property
    def passed(self) -> bool:
        return self.max_abs_diff == 0 and not self.record.violations


async def play(plan: Plan, folder: Path, record: Record | None = None) -> Report:
    """Run it in `folder`. Cancelled, it ends all that it started."""
    record = record or Record()
    queues = plan.queues or random.Random(f"{plan.seed}/queues").choice(list(QueueType))
    record.note(f"{queues} queues")
    stack = Stack(folder, record, workers=plan.workers, appendfsync=plan.appendfsync, queues=queues)
    async with stack:
        devices = [await _device(stack, slot, plan) for slot in range(plan.devices)]
        fleets = [await new_fleet(stack, first=plan.devices)] if plan.fleets else []
        scene = Scene(stack, [*devices, *(device for fleet in fleets for device in fleet.devices)])
        weather = asyncio.create_task(_weather(plan, scene))
        trainings = [
            asyncio.create_task(each.run(lambda: not weather.done())) for each in (*devices, *fleets)
        ]
        try:
            await asyncio.wait({weather, *trainings}, return_when=asyncio.FIRST_COMPLETED)
            # A device ends before the weather only where something is wrong: then there is no more to see.
            if weather.done():
                weather.result()
                await _finish(scene, trainings)
        finally:
            for task in (weather, *trainings):
                task.cancel()
            await asyncio.gather(weather, *trainings, return_exceptions=True)
        return await _report(scene, devices, fleets)


async def _device(stack: Stack, slot: int, plan: Plan) -> Device:
    link = await stack.link(ports=2, seed=plan.seed + slot)
    link.set_profile(PROFILE)
    return Device(slot=slot, first=slot + 1, every=plan.devices, stack=stack, link=link, port=link.port)


async def _weather(plan: Plan, scene: Scene) -> None:
    """Faults in lanes side by side: one of the servers, one of the workers, one of each device."""
    if not await until(lambda: len(scene.active()) >= plan.devices, BEGIN_S):
        scene.stack.record.violate("not all devices began to train")
        return
    servers: dict[str, Fault] = {
        kind: partial(_strike, scene, kind, strike)
        for kind, strike in SERVER_FAULTS.items()
        if plan.appendfsync == "everysec" or kind not in NEEDS_EVERYSEC
    }
    workers: dict[str, Fault] = {
        kind: partial(_strike, scene, kind, strike) for kind, strike in WORKER_FAULTS.items()
    }
    lanes = [servers, workers, *_device_lanes(plan, scene)]
    async with asyncio.TaskGroup() as group:
        for number, faults in enumerate(lanes):
            group.create_task(_lane(faults, plan, random.Random(f"{plan.seed}/{number}")))


async def _strike(scene: Scene, kind: str, strike: Strike, rng: random.Random) -> None:
    await strike(scene, rng, kind)


def _device_lanes(plan: Plan, scene: Scene) -> list[dict[str, Fault]]:
    """Every device may meet every kind; where each happens once, the devices share them."""
    lanes: list[dict[str, Fault]] = [{} for _ in scene.devices]
    kinds = list(DEVICE_FAULTS.items())
    random.Random(plan.seed).shuffle(kinds)
    for number, (kind, strike) in enumerate(kinds):
        for device, lane in zip(scene.devices, lanes, strict=True):
            if plan.seconds is not None or number % len(lanes) == device.slot:
                lane[kind] = partial(_strike_device, scene, kind, strike, device)
    return lanes


async def _strike_device(
    scene: Scene, kind: str, strike: StrikeDevice, device: Device, rng: random.Random
) -> None:
    await strike(scene, rng, kind, device)


async def _lane(faults: Mapping[str, Fault], plan: Plan, rng: random.Random) -> None:
    """One fault after the other, in a new order each round, for the plan's time or a single round."""
    until = asyncio.get_running_loop().time() + (plan.seconds or 0.0)
    while True:
        kinds = sorted(faults)
        rng.shuffle(kinds)
        for kind in kinds:
            await asyncio.sleep(rng.uniform(0.0, 2 * plan.gap_s))
            if plan.seconds is not None and asyncio.get_running_loop().time() >= until:
                return
            await faults[kind](rng)
        if plan.seconds is None:
            return


async def _finish(scene: Scene, trainings: list[asyncio.Task[None]]) -> None:
    """All is healed: everybody must come to the end now."""
    for slot in scene.stack.workers[: scene.stack.worker_count]:
        if not slot.running:
            said = list(slot.process.last_lines) if slot.process is not None else []
            scene.stack.record.violate(f"worker {slot.number} ended by itself: {said}")
            await scene.stack.start_worker(slot)
    _, late = await asyncio.wait(trainings, timeout=FINISH_S)
    if late:
        scene.stack.record.violate(f"{len(late)} trainings did not finish within {FINISH_S:.0f} s")
    for task in trainings:
        if task.done():
            task.result()


async def _report(scene: Scene, devices: Sequence[Device], fleets: Sequence[Fleet]) -> Report:
    record, stack = scene.stack.record, scene.stack
    done = [(training, device.state_of(training)) for device in devices for training in device.finished]
    store = await open_store(stack.redis.url)
    try:
        differences = await judge(store, done)
        for fleet in fleets:
            for name in fleet.finished:
                found, rounds = await judge_fleet(store, fleet.devices, name)
                for what in found if rounds else ["no round of it counted"]:
                    record.violate(f"{name}: {what}")
    finally:
        await store.close()
    needed = sum(undisturbed(training, folder).bytes_up for training, folder in done)
    record.bytes_up = sum(device.bytes_up for device in devices)
    names = tuple(name for fleet in fleets for name in fleet.finished)
    return Report(record=record, differences=differences, bytes_needed=needed, fleets=names)
