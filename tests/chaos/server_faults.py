"""Faults of the broker and the store."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

from broker.transport.topology import DEFAULT_SHARDS, shard_of, shard_queue
from tests.chaos.scene import Scene, Strike
from tests.chaos.stack import Stack
from tests.fixtures_redis import ask_redis

ALARM, NO_ALARM = "0.00001", "0.4"
PAUSES_S = (1.0, 4.0, 8.0, 14.0)
"""The last is longer than clients of RabbitMQ wait for a sign of life, and than calls of the store take."""

REDIS_FULL, REDIS_UNLIMITED = "1", "0"


async def rabbitmq_restarts(scene: Scene, rng: random.Random, kind: str) -> None:
    stack, down_s = scene.stack, rng.uniform(0.0, 2.0)
    await stack.thread(stack.rabbit.sync_queues)
    active = scene.active()
    stack.record.strike(kind)
    await stack.thread(stack.rabbit.kill)
    await asyncio.sleep(down_s)
    await stack.thread(stack.rabbit.start)
    stack.record.disturbed(kind, active)


async def connections_closed(scene: Scene, rng: random.Random, kind: str) -> None:
    stack = scene.stack
    active = scene.active()
    stack.record.strike(kind)
    await stack.thread(lambda: stack.rabbit.ctl("close_all_connections", "chaos"))
    stack.record.disturbed(kind, active)


async def reply_queue_deleted(scene: Scene, rng: random.Random, kind: str) -> None:
    stack, device = scene.stack, rng.choice(scene.devices)
    listed = await stack.thread(lambda: stack.rabbit.ctl("list_queues", "name"))
    prefix = f"spliteasy.reply.{device.device_id}."
    active = stack.record.active([device.slot])
    stack.record.strike(kind, device.device_id)
    for name in (line for line in listed.split() if line.startswith(prefix)):
        await stack.thread(lambda name=name: stack.rabbit.ctl("delete_queue", name))  # type: ignore[misc]
    stack.record.disturbed(kind, active)


async def shard_queue_deleted(scene: Scene, rng: random.Random, kind: str) -> None:
    stack, device = scene.stack, rng.choice(scene.devices)
    name = shard_queue(shard_of(device.session, DEFAULT_SHARDS)).name
    active = stack.record.active([device.slot])
    stack.record.strike(kind, name)
    await stack.thread(lambda: stack.rabbit.ctl("delete_queue", name))
    stack.record.disturbed(kind, active)


async def memory_alarm(scene: Scene, rng: random.Random, kind: str) -> None:
    stack, hold_s = scene.stack, rng.uniform(1.0, 5.0)
    active = scene.active()
    stack.record.strike(kind)
    try:
        await stack.thread(lambda: stack.rabbit.ctl("set_vm_memory_high_watermark", ALARM))
        await asyncio.sleep(hold_s)
    finally:
        await stack.thread(lambda: stack.rabbit.ctl("set_vm_memory_high_watermark", NO_ALARM))
    stack.record.disturbed(kind, active)


async def redis_restarts(scene: Scene, rng: random.Random, kind: str) -> None:
    stack, down_s = scene.stack, rng.uniform(0.0, 3.0)
    active = scene.active()
    stack.record.strike(kind)
    await stack.thread(stack.redis.kill)
    await asyncio.sleep(down_s)
    await stack.thread(stack.redis.start)
    stack.record.disturbed(kind, active)


async def redis_loses_its_last_second(scene: Scene, rng: random.Random, kind: str) -> None:
    """Do what a machine's death does under `everysec`: the file ends earlier, within a command."""
    stack, lost_s, torn_bytes = scene.stack, rng.uniform(0.2, 1.0), rng.randrange(300)
    file = append_only_file(stack)
    size = file.stat().st_size
    await asyncio.sleep(lost_s)
    active = scene.active()
    stack.record.strike(kind, f"({lost_s:.1f} s, {file.stat().st_size - size} bytes)")
    await stack.thread(stack.redis.kill)
    with file.open("r+b") as aof:
        aof.truncate(min(file.stat().st_size, size + torn_bytes))
    await stack.thread(stack.redis.start)
    stack.record.disturbed(kind, active)


async def redis_full(scene: Scene, rng: random.Random, kind: str) -> None:
    stack, hold_s = scene.stack, rng.uniform(1.0, 4.0)
    active = scene.active()
    stack.record.strike(kind)
    try:
        await stack.thread(lambda: ask_redis(stack.redis, "CONFIG", "SET", "maxmemory", REDIS_FULL))
        await asyncio.sleep(hold_s)
    finally:
        await stack.thread(lambda: ask_redis(stack.redis, "CONFIG", "SET", "maxmemory", REDIS_UNLIMITED))
    stack.record.disturbed(kind, active)


async def rabbitmq_paused(scene: Scene, rng: random.Random, kind: str) -> None:
    await _paused(scene, rng, kind, scene.stack.rabbit.pid)


async def redis_paused(scene: Scene, rng: random.Random, kind: str) -> None:
    await _paused(scene, rng, kind, scene.stack.redis.pid)


async def _paused(scene: Scene, rng: random.Random, kind: str, pid: int | None) -> None:
    """It says nothing for a while and closes nothing; what was sent to it meanwhile takes effect late."""
    hold_s = rng.choice(PAUSES_S)
    assert pid is not None
    active = scene.active()
    scene.stack.record.strike(kind, f"{hold_s} s")
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(hold_s)
    finally:
        os.kill(pid, signal.SIGCONT)
    scene.stack.record.disturbed(kind, active)


def append_only_file(stack: Stack) -> Path:
    """Return the file that Redis appends to."""
    return max((stack.redis.folder / "data" / "appendonlydir").glob("*.incr.aof"))


SERVER_FAULTS: dict[str, Strike] = {
    "RabbitMQ killed, restarted": rabbitmq_restarts,
    "connections closed by the operator": connections_closed,
    "reply queue deleted": reply_queue_deleted,
    "shard queue deleted": shard_queue_deleted,
    "RabbitMQ's memory alarm": memory_alarm,
    "Redis killed, restarted": redis_restarts,
    "Redis lost its last second": redis_loses_its_last_second,
    "Redis out of memory": redis_full,
    "RabbitMQ paused": rabbitmq_paused,
    "Redis paused": redis_paused,
}
