"""Training on a Redis that sentinels watch: its primary dies with newest writes, and a replica takes over."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.conftest import new_training
from tests.chaos.record import Record, table
from tests.chaos.stack import Stack
from tests.fixtures_rabbitmq import free_ports
from tests.sentinels import WatchedRedis

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]
KIND = "Redis failed over, writes lost"
LOSS_WINDOW_S = 20.0


def test_a_failover_that_loses_writes_takes_both_sides_back(tmp_path: Path) -> None:
    record = Record()
    asyncio.run(_fail_over(tmp_path, record))
    print(table(record))
    assert record.steps_again > 0, "\n".join(record.history)
    assert len(record.moved_after[KIND]) == 1


async def _fail_over(folder: Path, record: Record) -> None:
    primary, replica, *sentinels = free_ports(5)
    redis = WatchedRedis(
        folder=folder / "redis",
        port=primary,
        replica_port=replica,
        sentinel_ports=tuple(sentinels),
        loss_window_s=LOSS_WINDOW_S,
    )
    async with Stack(folder, record, workers=2, redis=redis) as stack:
        trained = await new_training(stack)
        await trained.reach(10)
        assert await stack.thread(redis.copied)
        await stack.thread(redis.stop_copying)
        await trained.reach(trained.steps + 3)
        record.strike(KIND)
        await stack.thread(redis.kill_primary)
        record.disturbed(KIND, [0])
        await trained.finish()
