"""Faults of workers and of their links to the broker."""

from __future__ import annotations

import asyncio
import random
import resource
import signal
from contextlib import suppress

from benchmarks.emulator import Direction
from tests.chaos.scene import Scene, Strike, moved_on
from tests.chaos.stack import WorkerSlot

STARVED_BYTES = 1 << 20
"""Less than any process has: nothing more is given."""


def _busy(scene: Scene, rng: random.Random) -> WorkerSlot:
    """A running worker, rather one that has sessions."""
    running = [slot for slot in scene.stack.workers if slot.running]
    busy = [slot for slot in running if scene.active_on(slot)]
    return rng.choice(busy or running)


async def killed(scene: Scene, rng: random.Random, kind: str) -> None:
    gap_s = rng.uniform(0.0, 4.0)
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    scene.stack.record.strike(kind, f"worker {slot.number}")
    assert slot.process is not None
    scene.stack.record.disturbed(kind, active)
    await slot.process.kill()
    await asyncio.sleep(gap_s)
    await scene.stack.start_worker(slot)


async def all_killed(scene: Scene, rng: random.Random, kind: str) -> None:
    slots = [slot for slot in scene.stack.workers if slot.running]
    active = scene.active()
    scene.stack.record.strike(kind)
    for slot in slots:
        assert slot.process is not None
        await slot.process.kill()
    await asyncio.gather(*(scene.stack.start_worker(slot) for slot in slots))
    scene.stack.record.disturbed(kind, active)


async def paused(scene: Scene, rng: random.Random, kind: str) -> None:
    hold_s = rng.uniform(0.5, 3.0)
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    assert slot.process is not None
    scene.stack.record.strike(kind, f"worker {slot.number}, {hold_s:.1f} s")
    slot.process.signal(signal.SIGSTOP)
    await asyncio.sleep(hold_s)
    slot.process.signal(signal.SIGCONT)
    scene.stack.record.disturbed(kind, active)


async def zombie(scene: Scene, rng: random.Random, kind: str) -> None:
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    assert slot.process is not None
    scene.stack.record.strike(kind, f"worker {slot.number}")
    slot.process.signal(signal.SIGSTOP)
    scene.stack.record.disturbed(kind, active)
    await moved_on(scene, active)
    slot.process.signal(signal.SIGCONT)


async def drained(scene: Scene, rng: random.Random, kind: str) -> None:
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    scene.stack.record.strike(kind, f"worker {slot.number}")
    scene.stack.record.disturbed(kind, active)
    await scene.stack.drain_worker(slot)
    await scene.stack.start_worker(slot)


async def added(scene: Scene, rng: random.Random, kind: str) -> None:
    stay_s = rng.uniform(2.0, 8.0)
    slot = next((slot for slot in scene.stack.workers if not slot.running), None)
    slot = slot or await scene.stack.add_worker()
    scene.stack.record.strike(kind, f"worker {slot.number}")
    await scene.stack.start_worker(slot)
    await asyncio.sleep(stay_s)
    await scene.stack.drain_worker(slot)


async def starved(scene: Scene, rng: random.Random, kind: str) -> None:
    """It gets no more memory for a while: it says so, or ends and is started again, as by a supervisor."""
    hold_s = rng.uniform(1.0, 4.0)
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    process = slot.process
    assert process is not None
    scene.stack.record.strike(kind, f"worker {slot.number}, {hold_s:.1f} s")
    with suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_AS, (STARVED_BYTES, resource.RLIM_INFINITY))
    await asyncio.sleep(hold_s)
    with suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    if not slot.running:
        scene.stack.record.note(f"worker {slot.number} ended: {list(process.last_lines)}")
        await scene.stack.start_worker(slot)
    scene.stack.record.disturbed(kind, active)


async def link_cut(scene: Scene, rng: random.Random, kind: str) -> None:
    for_s = rng.uniform(0.0, 3.0)
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    scene.stack.record.strike(kind, f"worker {slot.number}, {for_s:.1f} s")
    slot.link.cut(for_s=for_s)
    scene.stack.record.disturbed(kind, active)
    await asyncio.sleep(for_s)


async def link_stalled(scene: Scene, rng: random.Random, kind: str) -> None:
    direction = rng.choice((None, *Direction))
    slot = _busy(scene, rng)
    active = scene.active_on(slot)
    scene.stack.record.strike(kind, f"worker {slot.number}, {direction}")
    slot.link.stall(direction)
    scene.stack.record.disturbed(kind, active)
    await moved_on(scene, active)
    slot.link.resume(direction)


WORKER_FAULTS: dict[str, Strike] = {
    "worker killed": killed,
    "all workers killed": all_killed,
    "worker paused": paused,
    "worker paused until given up, then resumed": zombie,
    "worker starved of memory": starved,
    "worker drained": drained,
    "worker added, later drained": added,
    "worker's link cut": link_cut,
    "worker's link stalled": link_stalled,
}
