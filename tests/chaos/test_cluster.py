"""Training on a RabbitMQ of three nodes that a URL names: nodes die, and come back one after the other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server_worker.store import open_store
from tests.chaos.cluster import NODES, Cluster
from tests.chaos.device import PROFILE, Device
from tests.chaos.judge import judge
from tests.chaos.record import Record, table
from tests.chaos.scene import until
from tests.chaos.stack import PASSWORD, Stack
from tests.fixtures_rabbitmq import free_ports

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis, pytest.mark.long]
MOVES_S = 180.0
KIND = "one of three nodes killed"


class ClusterStack(Stack):
    """A stack whose workers and devices know all nodes."""

    def broker_url(self, port: int) -> str:
        assert isinstance(self.rabbit, Cluster)
        return self.rabbit.urls


def test_a_rolling_restart_of_the_nodes_loses_no_step(tmp_path: Path) -> None:
    record = Record()
    differences = asyncio.run(_roll(tmp_path, record))
    print(table(record))
    assert record.violations == [], "\n".join(record.history)
    assert set(differences.values()) == {0.0}
    assert record.faults[KIND] == len(record.moved_after[KIND]) == NODES
    assert record.steps_again == 0, "no step was lost"


async def _roll(folder: Path, record: Record) -> dict[str, float]:
    """Return how much each training differs from the undisturbed one."""
    cluster = Cluster(folder / "cluster", ports=iter(free_ports(7)), password=PASSWORD)
    async with ClusterStack(folder, record, workers=2, rabbit=cluster) as stack:
        link = await stack.link(ports=2)
        link.set_profile(PROFILE)
        device, over = Device(slot=0, first=1, stack=stack, link=link, port=link.port), asyncio.Event()
        training = asyncio.create_task(device.run(lambda: not over.is_set()))
        try:
            assert await _step(record, training, 5)
            for number in reversed(range(NODES)):  # the first one answers `ctl`, and goes last
                record.strike(KIND, str(number))
                record.disturbed(KIND, [0])
                await stack.thread(lambda number=number: cluster.kill_node(number))  # type: ignore[misc]
                assert await _step(record, training, 5)
                await stack.thread(lambda number=number: cluster.start_node(number))  # type: ignore[misc]
                assert await _step(record, training, 5)
            over.set()
            await asyncio.wait_for(training, MOVES_S)
            store = await open_store(stack.redis.url)
            try:
                done = [(each, device.state_of(each)) for each in device.finished]
                return dict(await judge(store, done))
            finally:
                await store.close()
        finally:
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)


async def _step(record: Record, training: asyncio.Task[None], steps: int) -> bool:
    """Wait until so many more steps were taken; whether they were in time."""
    wanted = record.steps + steps
    return await until(lambda: record.steps >= wanted or training.done(), MOVES_S)
