"""A short run of chaos, every kind of fault once; and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from broker.transport.topology import QueueType
from deploy.stack.daemons import start_time
from tests.chaos.cluster import Cluster
from tests.chaos.conftest import new_training
from tests.chaos.device_faults import DEVICE_FAULTS
from tests.chaos.processes import ROOT
from tests.chaos.record import Record, percentile, table
from tests.chaos.run import Plan, play
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.stack import HOST, PASSWORD, Stack
from tests.chaos.worker_faults import WORKER_FAULTS
from tests.fixtures_rabbitmq import free_ports

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]
ALL = {*SERVER_FAULTS, *WORKER_FAULTS, *DEVICE_FAULTS}
MAY_NOT_STRIKE = {"checkpoints lost", "link cut in an upload", "link cut in a download"}
"""These wait for the right moment, which on a slow machine may not come."""


@pytest.mark.parametrize(
    "queues", [QueueType.CLASSIC, pytest.param(QueueType.QUORUM, marks=pytest.mark.long)]
)
def test_every_kind_of_fault_leaves_the_same_bits(tmp_path: Path, queues: QueueType) -> None:
    report = asyncio.run(play(Plan(seed=3, seconds=None, queues=queues, gap_s=0.5), tmp_path))
    print(table(report.record))
    assert report.record.violations == [], "\n".join(report.record.history)
    assert report.max_abs_diff == 0
    assert len(report.differences) >= 2
    assert set(report.record.faults) | MAY_NOT_STRIKE == ALL


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_redis_that_syncs_always_loses_nothing(tmp_path: Path, seed: int) -> None:
    report = asyncio.run(play(Plan(seed=seed, seconds=60, appendfsync="always"), tmp_path))
    assert report.passed, "\n".join(report.record.history)


@pytest.mark.long
def test_a_cluster_goes_on_without_the_node_that_leads_its_queues(tmp_path: Path) -> None:
    asyncio.run(_lose_a_node(tmp_path))


async def _lose_a_node(folder: Path) -> None:
    cluster = Cluster(folder / "cluster", ports=iter(free_ports(7)), password=PASSWORD)
    async with Stack(folder, Record(), workers=2, rabbit=cluster) as stack:
        trained = await new_training(stack)
        await trained.reach(20)
        assert cluster.leaders().count("node0@localhost") >= 16
        for link in stack.links:
            link.lead_to((HOST, cluster.nodes[1].port))
        await stack.thread(lambda: cluster.kill_node(0))
        await trained.finish()


def test_ctrl_c_ends_all_that_was_started(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tests.chaos", "--minutes", "5"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            next(line for line in process.stdout if " 0 takeovers" not in line)
            started = descendants(process.pid)
            assert len(started) >= 4  # RabbitMQ, Redis and two workers, at least
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.strip() == "interrupted; all that was started is gone"
    assert not [pid for pid in started if start_time(pid) is not None]


def descendants(pid: int) -> set[int]:
    """The processes that it started, and those that they started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found, left = set[int](), [pid]
    while left:
        new = children.get(left.pop(), [])
        found.update(new)
        left += new
    return found


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(1, 21)], 0.95) == 19.0
    assert percentile([5.0], 0.95) == 5.0
