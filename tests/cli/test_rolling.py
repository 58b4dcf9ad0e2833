"""A rolling upgrade: two versions beside each other, and no step is lost or done again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from device_agent.state_folder import StateFolder
from server_worker.store import StoredJob, open_store
from spliteasy.job import Job
from spliteasy.job.package import job_digest, manifest_of
from tests.cli.conftest import ROOT, finish, read_until
from tests.next_version import FEATURE
from tests.simulation import toy

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]
OLD, NEXT = "spliteasy_cli", "tests.next_version"
LONG = toy.Variant(epochs=24)
STEPS = {toy.Variant(): 12, LONG: 96}
DATA = """
import time
from pathlib import Path

from torch.utils.data import TensorDataset

from tests.simulation.toy import device_data

read = 0


class Held(TensorDataset):
    def __getitem__(self, index):
        global read
        read += 1
        while read % 60 == 0 and read < 300 and not Path(f"go-{read // 60}").exists():
            time.sleep(0.02)
        return super().__getitem__(index)


def load(device):
    train, test = device_data(device)
    return Held(*train.tensors), test
"""
"""The devices wait after about 15, 30, 45 and 60 steps for the upgrade to come so far."""

Process = subprocess.Popen[str]


@dataclass
class Fleet:
    """Processes of either version, in one folder, on one broker and store."""

    folder: Path
    environment: dict[str, str]
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self, version: str, *arguments: str) -> Process:
        process = subprocess.Popen(
            [sys.executable, "-m", version, *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return process

    def worker(self, version: str, name: str) -> Process:
        """One that serves."""
        process = self.start(version, "worker", "--trust", "open", "--name", name)
        read_until(process, '"serving"')
        return process

    def agent(self, version: str, device: str) -> Process:
        where = ("--data", "slow:load", "--state", f"state-{device}", "--history", "history")
        return self.start(version, "agent", "--job", "toy", "--device", device, *where)

    def go(self, number: int) -> None:
        """Let the devices pass where they wait."""
        (self.folder / f"go-{number}").touch()

    def check(self, device: str, job: Job, steps: int) -> None:
        """Each step was taken once, and the bits are those of a training without a wire."""
        lines = (self.folder / f"history/{device}.jsonl").read_text().splitlines()
        taken = [entry["step"] for entry in map(json.loads, lines) if entry["event"] == "step"]
        assert taken == list(range(1, steps + 1))
        with StateFolder(self.folder / f"state-{device}") as state:
            found, secret = state.load_checkpoint(steps), state.secret()
        expected = toy.train_alone(job, toy.DATA, device, secret=secret)[0]
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def stop(process: Process) -> str:
    """Stop the process by SIGTERM, and return what it said since it was last read."""
    process.terminate()
    return finish(process)


@pytest.fixture
def fleet(rabbitmq_url: str, redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    (tmp_path / "slow.py").write_text(DATA)
    environment = {
        "SPLITEASY_BROKER": rabbitmq_url,
        "SPLITEASY_STORE": redis_url,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    fleet = Fleet(tmp_path, environment)
    with fleet.stack:
        yield fleet


def put_job(url: str, variant: toy.Variant, *more_needs: str) -> Job:
    """Store the job, which needs these features too; returns it as it is stored."""
    job = toy.job(variant)
    manifest = manifest_of("toy", job.parts, needs=(*json.loads(job.manifest)["needs"], *more_needs))
    job = replace(job, manifest=manifest, digest=job_digest(manifest))

    async def put() -> None:
        store = await open_store(url)
        try:
            stored = StoredJob(name="toy", digest=job.digest, manifest=manifest, parts=job.parts)
            await store.put_job(stored)
        finally:
            await store.close()

    asyncio.run(put())
    return job


def test_workers_then_agents_are_replaced_under_a_running_training(fleet: Fleet, redis_url: str) -> None:
    job = put_job(redis_url, LONG)
    old = [fleet.worker(OLD, f"old-{number}") for number in (1, 2)]
    first = fleet.agent(OLD, "phone-1")
    second = fleet.agent(NEXT, "phone-2")  # a newer agent before the workers are: that goes too
    for agent in (first, second):
        read_until(agent, '"training"')
    fleet.go(1)
    fleet.worker(NEXT, "next")
    stop(old[0])
    fleet.go(2)  # an old worker and a new one serve beside each other
    stop(old[1])
    fleet.go(3)
    first.terminate()
    fleet.go(4)
    assert "phone-1: stopped after step" in finish(first)
    again = fleet.agent(NEXT, "phone-1")
    assert "resumed after step" in (said := finish(again))
    assert "phone-1: done, 96 steps" in said
    assert "phone-2: done, 96 steps" in finish(second)
    for device in ("phone-1", "phone-2"):
        fleet.check(device, job, STEPS[LONG])


def test_a_job_that_needs_the_next_version_waits_for_it(fleet: Fleet, redis_url: str) -> None:
    job = put_job(redis_url, toy.Variant(), FEATURE)
    for number in range(1, 5):
        fleet.go(number)
    old = fleet.worker(OLD, "old")
    agent = fleet.agent(OLD, "phone-1")
    said, _ = agent.communicate()
    assert agent.returncode == 2
    assert f"job toy needs {FEATURE}, which this version does not know (upgrade this side)" in said
    agent = fleet.agent(NEXT, "phone-1")
    read_until(agent, "waiting for a worker that does")
    fleet.worker(NEXT, "next")
    assert "phone-1: done, 12 steps" in finish(agent)
    assert "leaving a shard to other workers" in stop(old)
    fleet.check("phone-1", job, STEPS[toy.Variant()])
