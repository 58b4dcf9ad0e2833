"""Training on a RabbitMQ of three nodes that a URL names: nodes die, and come back one after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos.cluster import NODES, Cluster
from tests.chaos.conftest import Trained, new_training
from tests.chaos.record import Record, table
from tests.chaos.scene import until
from tests.chaos.stack import PASSWORD, Stack
from tests.fixtures_rabbitmq import free_ports

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis, pytest.mark.long]
MOVES_S = 120.0


class ClusterStack(Stack):
    """A stack whose workers and devices know all nodes."""

    def broker_url(self, port: int) -> str:
        assert isinstance(self.rabbit, Cluster)
        return self.rabbit.urls


def test_a_rolling_restart_of_the_nodes_loses_no_step(tmp_path: Path) -> None:
    record = Record()
    asyncio.run(_roll(tmp_path, record))
    print(table(record))
    assert record.violations == [], "\n".join(record.history)


async def _roll(folder: Path, record: Record) -> None:
    cluster = Cluster(folder / "cluster", ports=iter(free_ports(7)), password=PASSWORD)
    async with ClusterStack(folder, record, workers=2, rabbit=cluster) as stack:
        trained = await new_training(stack)
        await trained.reach(5)
        for number in reversed(range(NODES)):  # the first one answers `ctl`, and goes last
            record.strike("node killed", str(number))
            await stack.thread(lambda number=number: cluster.kill_node(number))  # type: ignore[misc]
            await _moves(trained, record, "node killed")
            await stack.thread(lambda number=number: cluster.start_node(number))  # type: ignore[misc]
            await trained.reach(trained.steps + 1)
        await trained.finish()


async def _moves(trained: Trained, record: Record, kind: str) -> None:
    """Measure until the device has taken two more steps: one may have been on its way."""
    record.disturbed(kind, [0])
    step = trained.steps
    assert await until(lambda: trained.steps >= step + 2 or trained.task.done(), MOVES_S)
