"""The activation cache over a real broker and a real store: the same bits, fewer bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from broker.protocol import messages as m
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from server_worker.config import WorkerConfig
from server_worker.kept_rows import KeptRows
from server_worker.replica.direct_body import DirectBody
from server_worker.session.machine import WorkerSession
from spliteasy.job import Job, JobSpec
from testing import serving
from tests.drawn import SECRET
from tests.simulation import toy

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]

WIDE = replace(toy.FROZEN_HEAD, factory="tests.worker.test_rows_over_real_parts:build_wide", epochs=4)
DEVICE = "phone-1"


def build_wide() -> torch.nn.Module:
    """A frozen head whose rows are large beside their names, and all else that crosses small."""
    layers = torch.nn
    return layers.Sequential(
        layers.Linear(6, 4000).requires_grad_(False),
        layers.LayerNorm(4000).requires_grad_(False),
        layers.ReLU(),
        layers.Linear(4000, 5),
        layers.Dropout(0.3),
        layers.BatchNorm1d(5),
        layers.ReLU(),
        layers.Linear(5, 3),
    )


def without_cache(job: Job) -> Job:
    """The same job with the cache switched off."""
    spec: dict[str, Any] = job.spec.model_dump()
    spec["link"] = {**spec["link"], "cache": False}
    return Job.create(JobSpec.model_validate(spec))


class Counted:
    """Bytes that were sent up to each step."""

    def __init__(self) -> None:
        self.up: list[int] = []

    def __call__(self, seen: Observation) -> None:
        if isinstance(seen, StepTaken):
            self.up.append(seen.bytes_up)

    def of_epoch(self, epoch: int) -> int:
        """Bytes that were sent in an epoch of four steps, but for its first."""
        return self.up[4 * epoch + 3] - self.up[4 * epoch]


def judge(job: Job, agent: Agent, body: dict[str, torch.Tensor]) -> None:
    """Head, tail and body are what they are without a wire, to the bit."""
    own, expected, _ = toy.train_alone(job, toy.DATA, DEVICE)
    assert agent.trainer is not None
    for wanted, found in ((own, agent.trainer.state()), (expected, body)):
        assert wanted.keys() == found.keys()
        assert not [name for name in wanted if not torch.equal(wanted[name], found[name])]


def config_of(state: Path) -> AgentConfig:
    return AgentConfig(job="toy", device=DEVICE, data=toy.DATA, secret=SECRET, state=state)


async def stored_body(store: Any, job: Job) -> dict[str, torch.Tensor]:
    """The body as the store has it: the newest snapshot, and the log after it."""
    body, session = DirectBody(job, f"toy.{DEVICE}"), f"toy.{DEVICE}"
    meta = await store.session(session)
    at = meta.snapshots[-1]
    body.restore(await store.read_snapshot(session, at), at)
    async for entry in store.read_log(session, after=at, upto=meta.committed):
        body.replay(entry)
    return body.snapshot()


@pytest.mark.parametrize("cache", [True, False])
async def test_a_training_with_kept_rows_has_the_bits_of_one_without(
    rabbitmq_url: str, redis_url: str, tmp_path: Path, cache: bool
) -> None:
    job = toy.job(WIDE) if cache else without_cache(toy.job(WIDE))
    counted = Counted()
    async with serving(job, broker=rabbitmq_url, store=redis_url) as cluster:
        result, agent = await cluster.train(config_of(tmp_path), observe=counted)
        assert result.done
        judge(job, agent, await stored_body(cluster.store, job))
        assert all(worker.actors.rows.nbytes == 0 for worker in cluster.workers), "the training has ended"
    rows = 3 * 3 * 4000 * 4  # three steps of three samples at least
    assert counted.of_epoch(0) > rows
    assert (counted.of_epoch(2) < 0.2 * rows) is cache


async def test_a_worker_that_lost_its_rows_is_sent_them_again(
    rabbitmq_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch the worker forgets all of them, as one that has taken the session over."""
    missed: list[m.Ranges] = []
    recall = WorkerSession._recall
    kept: list[KeptRows] = []

    def watched(session: WorkerSession, request: m.Recall) -> Any:
        if session._rows not in kept:
            kept.append(session._rows)
            session._rows.forget(session.name)
        missed.append(tuple(session._rows.absent(request, toy.job(WIDE).digest)))
        yield from recall(session, request)

    monkeypatch.setattr(WorkerSession, "_recall", watched)
    job, counted = toy.job(WIDE), Counted()
    async with serving(job, broker=rabbitmq_url, store=redis_url) as cluster:
        result, agent = await cluster.train(config_of(tmp_path), observe=counted)
        assert result.done
        judge(job, agent, await stored_body(cluster.store, job))
    assert missed[0]
    assert not missed[-1]


async def test_a_worker_without_room_gets_every_row(
    rabbitmq_url: str, redis_url: str, tmp_path: Path
) -> None:
    job, counted = toy.job(WIDE), Counted()
    config = WorkerConfig(rows_bytes=0)
    async with serving(job, broker=rabbitmq_url, store=redis_url, config=config) as cluster:
        result, agent = await cluster.train(config_of(tmp_path), observe=counted)
        assert result.done
        judge(job, agent, await stored_body(cluster.store, job))
    assert counted.of_epoch(3) > 3 * 3 * 4000 * 4
