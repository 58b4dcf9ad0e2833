"""Faults of devices: their agents, their folders, their links."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable

from benchmarks.emulator import Direction, Profile
from tests.chaos import toy
from tests.chaos.device import PROFILE, Device
from tests.chaos.scene import GIVEN_UP_S, Scene, moved_on, until

SLOW = Profile(up_bytes_s=60_000, down_bytes_s=60_000, latency_s=0.02)
FAR = Profile(latency_s=0.2, jitter_s=0.1)

StrikeDevice = Callable[[Scene, random.Random, str, Device], Awaitable[None]]


async def agent_killed(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    gap_s = rng.choice((0.0, 0.5, 3.0))
    active = scene.stack.record.active([device.slot])
    async with device.killed():
        scene.stack.record.strike(kind, device.device_id)
        await asyncio.sleep(gap_s)
    scene.stack.record.disturbed(kind, active)


async def another_port(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    active = scene.stack.record.active([device.slot])
    others = [port for port in device.link.ports if port != device.port]
    async with device.killed():
        scene.stack.record.strike(kind, device.device_id)
        device.port = rng.choice(others)
        device.link.use_port(device.port)
    scene.stack.record.disturbed(kind, active)


async def checkpoints_lost(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    """Lose checkpoints, but not where the device chooses codecs: an older folder does not know what it chose
    since."""
    record, wanted = scene.stack.record, rng.randrange(5, 60)
    if device.session.startswith(f"{toy.AUTO}."):
        return
    session, copy = device.session, scene.stack.folder / f"{device.device_id}.copy"
    async with device.killed():
        if not device.was_killed or not device.state.exists():  # it is between two trainings
            return
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(device.state, copy)
    aim = record.newest[session] + wanted
    if not await until(lambda: record.newest[session] >= aim or device.session != session, GIVEN_UP_S):
        record.note(f"{session} took few steps since its copy")
    active = record.active([device.slot])
    async with device.killed():
        if not device.was_killed or device.session != session:
            return
        record.strike(kind, device.device_id)
        device.put_back(copy)
    record.disturbed(kind, active)


async def cut(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    for_s = rng.choice((0.0, 0.5, 3.0))
    active = scene.stack.record.active([device.slot])
    scene.stack.record.strike(kind, f"{device.device_id}, {for_s} s")
    device.link.cut(for_s=for_s)
    await asyncio.sleep(for_s)
    scene.stack.record.disturbed(kind, active)


async def _cut_after(
    scene: Scene, rng: random.Random, kind: str, device: Device, direction: Direction
) -> None:
    count, before = rng.randrange(1, 20_000), device.link.cuts
    device.link.cut_after(count, direction)
    if not await until(lambda: device.link.cuts > before, GIVEN_UP_S):
        return  # no such traffic now
    scene.stack.record.strike(kind, f"{device.device_id}, after {count} bytes")
    scene.stack.record.disturbed(kind, scene.stack.record.active([device.slot]))


async def cut_in_an_upload(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    await _cut_after(scene, rng, kind, device, Direction.UP)


async def cut_in_a_download(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    await _cut_after(scene, rng, kind, device, Direction.DOWN)


async def cut_in_one_direction(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    direction = rng.choice(tuple(Direction))
    active = scene.stack.record.active([device.slot])
    scene.stack.record.strike(kind, f"{device.device_id}, {direction.value}")
    device.link.cut(direction)
    scene.stack.record.disturbed(kind, active)
    await moved_on(scene, active)


async def stalled(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    direction, hold_s = rng.choice((None, *Direction)), rng.choice((1.0, 4.0, 20.0))
    active = scene.stack.record.active([device.slot])
    scene.stack.record.strike(kind, f"{device.device_id}, {hold_s} s")
    device.link.stall(direction)
    await asyncio.sleep(hold_s)
    device.link.resume(direction)
    scene.stack.record.disturbed(kind, active)


async def _worse(scene: Scene, rng: random.Random, kind: str, device: Device, profile: Profile) -> None:
    hold_s = rng.uniform(2.0, 6.0)
    scene.stack.record.strike(kind, f"{device.device_id}, {hold_s:.1f} s")
    device.link.set_profile(profile)
    await asyncio.sleep(hold_s)
    device.link.set_profile(PROFILE)


async def throttled(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    await _worse(scene, rng, kind, device, SLOW)


async def delayed(scene: Scene, rng: random.Random, kind: str, device: Device) -> None:
    await _worse(scene, rng, kind, device, FAR)


DEVICE_FAULTS: dict[str, StrikeDevice] = {
    "agent killed, restarted": agent_killed,
    "agent back under another port": another_port,
    "checkpoints lost": checkpoints_lost,
    "link cut": cut,
    "link cut in an upload": cut_in_an_upload,
    "link cut in a download": cut_in_a_download,
    "link cut in one direction": cut_in_one_direction,
    "link stalled": stalled,
    "link throttled": throttled,
    "link delayed": delayed,
}
