"""Training on from trained weights: for more epochs, with data that has grown, beside a newer version."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from server_worker.store import StoredJob
from spliteasy.errors import StateError
from spliteasy.runtime.torch_thread import TorchThread
from tests.device.served import served, toy_job
from tests.drawn import SECRET
from tests.simulation import toy

GROWN = "tests.device.test_going_on:grown_data"


def grown_data(device: str) -> tuple[TensorDataset, TensorDataset]:
    """The toy's data and 8 samples more: 6 steps an epoch instead of 4."""
    train, test = toy.device_data(device)
    assert isinstance(train, TensorDataset)
    assert isinstance(test, TensorDataset)
    more = torch.randn(8, 6, generator=torch.Generator().manual_seed(9))
    inputs, targets = train.tensors
    grown = TensorDataset(torch.cat((inputs, more)), torch.cat((targets, torch.zeros(8, dtype=torch.int64))))
    return grown, test


async def live(
    broker: MemoryBroker, config: AgentConfig, taken: list[int] | None = None
) -> tuple[AgentResult, Agent]:
    """One life of the agent, to its end."""
    compute = TorchThread()

    async def connect() -> MemoryTransport:
        return broker.connect("phone-1")

    def observe(observation: Observation) -> None:
        if taken is not None and isinstance(observation, StepTaken):
            taken.append(observation.step)

    try:
        async with asyncio.timeout(60):
            agent = Agent(config, connect=connect, compute=compute, observe=observe)
            return await agent.run(asyncio.Event()), agent
    finally:
        compute.close()


def config_of(state: Path) -> AgentConfig:
    return AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=state)


async def test_more_epochs_go_on_as_if_the_job_had_had_them(tmp_path: Path) -> None:
    async with served(toy_job(toy.Variant(epochs=2))) as (broker, _):
        config = config_of(tmp_path)
        first, _ = await live(broker, config)
        again, _ = await live(broker, config)
        more, agent = await live(broker, replace(config, epochs=3))
    assert (first.step, first.taken, first.done) == (8, 8, True)
    assert (again.step, again.taken) == (8, 0)
    assert (more.step, more.taken, more.done) == (12, 4, True)
    expected, _, _ = toy.train_alone(toy.job(toy.Variant(epochs=2)), toy.DATA, "phone-1", epochs=3)
    assert agent.trainer is not None
    found = agent.trainer.state()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


async def test_data_that_has_grown_is_offered_and_taken(tmp_path: Path) -> None:
    async with served(toy_job(toy.Variant(epochs=2))) as (broker, _):
        config = config_of(tmp_path)
        await live(broker, config)
        grown = replace(config, data=GROWN)
        with pytest.raises(StateError, match=r"not the one that .* was trained on \(go on .*--new-data"):
            await live(broker, grown)
        taken: list[int] = []
        result, _ = await live(broker, replace(grown, new_data=True), taken)
        assert (result.step, taken) == (12, [9, 10, 11, 12])
        kept, _ = await live(broker, grown)
        assert (kept.step, kept.taken) == (12, 0), "from then on the folder is of the new data"
        with pytest.raises(StateError, match="--new-data"):
            await live(broker, config)


async def test_a_newer_version_of_the_job_is_told(tmp_path: Path) -> None:
    old, newer = toy_job(toy.Variant(epochs=2)), toy_job(toy.Variant(epochs=3))
    async with served(old) as (broker, store):
        first, _ = await live(broker, config_of(tmp_path))
        assert (first.newest, first.job) == (None, old.digest)
        await store.put_job(newer)
        again, _ = await live(broker, config_of(tmp_path))
        assert (again.newest, again.job, again.taken) == (newer.digest, old.digest, 0)
        with pytest.raises(StateError, match=r"--state DIR; or go on in this one .*--epochs N"):
            await live(broker, replace(config_of(tmp_path), job=f"toy@{newer.digest}"))
        anew, _ = await live(broker, replace(config_of(tmp_path / "other"), restart=True))
        assert (anew.newest, anew.job, anew.step) == (None, newer.digest, 12)


def test_a_stored_job_is_of_one_version() -> None:
    """The two variants that the tests above submit are versions of one job."""
    versions: list[StoredJob] = [toy_job(toy.Variant(epochs=epochs)) for epochs in (2, 3)]
    assert {job.name for job in versions} == {"toy"}
    assert len({job.digest for job in versions}) == 2
