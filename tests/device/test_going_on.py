"""Training on from trained weights: for more epochs, with data that has grown, beside a newer version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from device_agent.state_folder import StateFolder
from server_worker.store import StoredJob
from spliteasy.errors import StateError
from testing import Cluster, serving
from tests.device.served import toy_job
from tests.drawn import SECRET
from tests.simulation import toy
from tests.store.steps import rewrite

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
    cluster: Cluster, config: AgentConfig, taken: list[int] | None = None
) -> tuple[AgentResult, Agent]:
    """One life of the agent, to its end."""

    def observe(observation: Observation) -> None:
        if taken is not None and isinstance(observation, StepTaken):
            taken.append(observation.step)

    return await cluster.train(config, observe=observe)


def config_of(state: Path) -> AgentConfig:
    return AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=state)


async def test_more_epochs_go_on_as_if_the_job_had_had_them(tmp_path: Path) -> None:
    async with serving(toy_job(toy.Variant(epochs=2))) as cluster:
        config = config_of(tmp_path)
        first, _ = await live(cluster, config)
        again, _ = await live(cluster, config)
        more, agent = await live(cluster, replace(config, epochs=3))
    assert (first.step, first.taken, first.done) == (8, 8, True)
    assert (again.step, again.taken) == (8, 0)
    assert (more.step, more.taken, more.done) == (12, 4, True)
    expected, _, _ = toy.train_alone(toy.job(toy.Variant(epochs=2)), toy.DATA, "phone-1", epochs=3)
    assert agent.trainer is not None
    found = agent.trainer.state()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


async def test_data_that_has_grown_is_offered_and_taken(tmp_path: Path) -> None:
    async with serving(toy_job(toy.Variant(epochs=2))) as cluster:
        config = config_of(tmp_path)
        await live(cluster, config)
        grown = replace(config, data=GROWN)
        with pytest.raises(StateError, match=r"not the one that .* was trained on \(go on .*--new-data"):
            await live(cluster, grown)
        taken: list[int] = []
        result, _ = await live(cluster, replace(grown, new_data=True), taken)
        assert (result.step, taken) == (12, [9, 10, 11, 12])
        kept, _ = await live(cluster, grown)
        assert (kept.step, kept.taken) == (12, 0), "from then on the folder is of the new data"
        with pytest.raises(StateError, match="--new-data"):
            await live(cluster, config)


async def test_a_newer_version_of_the_job_is_told(tmp_path: Path) -> None:
    old, newer = toy_job(toy.Variant(epochs=2)), toy_job(toy.Variant(epochs=3))
    async with serving(old) as cluster:
        first, _ = await live(cluster, config_of(tmp_path))
        assert (first.newest, first.job) == (None, old.digest)
        await cluster.store.put_job(newer)
        again, _ = await live(cluster, config_of(tmp_path))
        assert (again.newest, again.job, again.taken) == (newer.digest, old.digest, 0)
        with pytest.raises(StateError, match=r"trained weights with --new-version; or .*--state DIR"):
            await live(cluster, replace(config_of(tmp_path), job=f"toy@{newer.digest}"))
        anew, _ = await live(cluster, replace(config_of(tmp_path / "other"), restart=True))
        assert (anew.newest, anew.job, anew.step) == (None, newer.digest, 12)


def test_a_stored_job_is_of_one_version() -> None:
    """The two variants that the tests above submit are versions of one job."""
    versions: list[StoredJob] = [toy_job(toy.Variant(epochs=epochs)) for epochs in (2, 3)]
    assert {job.name for job in versions} == {"toy"}
    assert len({job.digest for job in versions}) == 2


def state_of(agent: Agent) -> dict[str, torch.Tensor]:
    assert agent.trainer is not None
    return agent.trainer.state()


def unbiased() -> nn.Module:
    """The toy with another body between the same ends."""
    model = toy.build()
    assert isinstance(model, nn.Sequential)
    model[3] = nn.Linear(5, 5, bias=False)
    return model


async def test_a_newer_version_goes_on_from_the_trained_weights(tmp_path: Path) -> None:
    old, newer = toy_job(toy.Variant(epochs=2)), toy_job(toy.Variant(epochs=3))
    config = replace(config_of(tmp_path), new_version=True)
    async with serving(old) as cluster:
        first, _ = await live(cluster, config)
        assert (first.job, first.step) == (old.digest, 8), "the first start trains the newest"
        await cluster.store.put_job(newer)
        taken: list[int] = []
        more, agent = await live(cluster, config, taken)
        assert (more.job, more.step, more.done, taken) == (newer.digest, 12, True, [9, 10, 11, 12])
        meta = await cluster.store.session("toy.phone-1")
        assert meta is not None
        assert (meta.job_digest, meta.committed, meta.closed) == (newer.digest, 12, True)
        trained = state_of(agent)
        again, agent = await live(cluster, replace(config, new_version=False))
        assert (again.job, again.step, again.taken, again.newest) == (newer.digest, 12, 0, None)
        assert all(torch.equal(trained[name], tensor) for name, tensor in state_of(agent).items())
        with pytest.raises(StateError, match="--new-version"):
            await live(cluster, replace(config_of(tmp_path), job=f"toy@{old.digest}"))
        back, _ = await live(cluster, replace(config, job=f"toy@{old.digest}"))
        assert (back.job, back.step, back.taken) == (old.digest, 12, 0), "any version may go on from any"


async def test_the_version_that_goes_on_begins_with_the_bits_of_the_one_before(tmp_path: Path) -> None:
    """The newer version has no step left: its weights are those that the older one ended with."""
    old, newer = toy_job(toy.Variant(epochs=2)), toy_job(toy.Variant(epochs=2, exactness="tolerance"))
    assert old.digest != newer.digest
    async with serving(old) as cluster:
        _, agent = await live(cluster, config_of(tmp_path))
        before, body = state_of(agent), await cluster.store.read_snapshot("toy.phone-1", 8)
        await cluster.store.put_job(newer)
        result, agent = await live(cluster, replace(config_of(tmp_path), new_version=True))
        assert (result.job, result.step, result.taken) == (newer.digest, 8, 0)
        assert body == await cluster.store.read_snapshot("toy.phone-1", 8) != {}
    assert any("momentum_buffer" in name for name in before), "the optimizer's state is kept"
    after = state_of(agent)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


async def test_a_version_with_another_optimizer_begins_its_state_anew(tmp_path: Path) -> None:
    adam = toy.Variant(epochs=3, optimizer=(("name", "adam"), ("lr", 0.01)))
    async with serving(toy_job(toy.Variant(epochs=2))) as cluster:
        await live(cluster, config_of(tmp_path))
        for variant, fields in (
            (adam, "exp_avg exp_avg_sq step"),
            (toy.Variant(epochs=4), "momentum_buffer"),
        ):
            await cluster.store.put_job(toy_job(variant))
            result, agent = await live(cluster, replace(config_of(tmp_path), new_version=True))
            assert (result.step, result.taken) == (variant.epochs * 4, 4)
            kept = {name.rpartition("/")[2] for name in state_of(agent) if "/optimizer/" in name}
            assert " ".join(sorted(kept)) == fields


async def test_a_version_of_other_shapes_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    old = toy_job(toy.Variant(epochs=2))
    body = toy_job(toy.Variant(factory="tests.device.test_going_on:unbiased"))
    ends = toy_job(toy.Variant(single=True))
    async with serving(old) as cluster:
        config = config_of(tmp_path)
        await live(cluster, config)
        before = await cluster.store.session("toy.phone-1")
        for newer, why in ((body, "it has no 3.bias"), (ends, "it has no 7.bias")):
            await cluster.store.put_job(newer)
            with pytest.raises(StateError) as refused:
                await live(cluster, replace(config, new_version=True))
            versions = f"toy@{newer.digest[:12]} can't go on from the weights of toy@{old.digest[:12]}"
            assert f"{versions}: {why}" in str(refused.value)
            assert "--restart" in (refused.value.hint or "")
        after = await cluster.store.session("toy.phone-1")
        assert before is not None
        assert after is not None
        assert (after.job_digest, after.committed) == (before.job_digest, before.committed)
        again, _ = await live(cluster, replace(config, epochs=3))
        assert (again.job, again.step) == (old.digest, 12), "the old version can still go on"


async def test_without_trained_weights_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    async with serving(toy_job(toy.Variant(epochs=2))) as cluster:
        await live(cluster, config_of(tmp_path))
        with StateFolder(tmp_path) as state:
            state.drop_after(-1)
            state.save_checkpoint(0, {})
        await cluster.store.put_job(toy_job(toy.Variant(epochs=3)))
        with pytest.raises(StateError, match="has no trained weights of toy@"):
            await live(cluster, replace(config_of(tmp_path), new_version=True))


async def test_a_session_that_the_store_forgot_is_not_begun_anew(tmp_path: Path) -> None:
    async with serving(toy_job(toy.Variant(epochs=2))) as cluster:
        await live(cluster, config_of(tmp_path))
        with StateFolder(tmp_path) as state:
            state.save_checkpoint(0, state.load_checkpoint(8))
        await cluster.store.forget("toy.phone-1")
        await cluster.store.put_job(toy_job(toy.Variant(epochs=3)))
        with pytest.raises(StateError, match="the store can restore nothing"):
            await live(cluster, replace(config_of(tmp_path), new_version=True))


@pytest.mark.parametrize("at", ["hand_over", "save_job"])
async def test_a_hand_over_that_was_cut_short_goes_on(
    tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent dies when the store has handed over and the folder has not, or has by half."""
    newer = toy_job(toy.Variant(epochs=3))
    config = replace(config_of(tmp_path), new_version=True)
    async with serving(toy_job(toy.Variant(epochs=2))) as cluster:
        await live(cluster, config)
        await cluster.store.put_job(newer)

        def dies(*args: object, **named: object) -> None:
            raise KeyError("the power went")

        with monkeypatch.context() as patch:
            patch.setattr(StateFolder, at, dies)
            with pytest.raises(KeyError):
                await live(cluster, config)
        meta = await cluster.store.session("toy.phone-1")
        assert meta is not None
        assert (meta.job_digest, meta.committed) == (newer.digest, 8)
        result, _ = await live(cluster, config)
    assert (result.job, result.step, result.taken) == (newer.digest, 12, 4)


async def test_a_store_that_lost_the_hand_over_makes_it_again(tmp_path: Path) -> None:
    """Redis may lose its last second: the session is then the old version's again."""
    old, newer = toy_job(toy.Variant(epochs=2)), toy_job(toy.Variant(epochs=3))
    async with serving(old) as cluster:
        await live(cluster, config_of(tmp_path))
        await cluster.store.put_job(newer)
        await live(cluster, replace(config_of(tmp_path), new_version=True, epochs=2))
        await rewrite(cluster.store, "toy.phone-1", job_digest=old.digest)
        result, _ = await live(cluster, config_of(tmp_path))
    assert (result.job, result.step, result.taken) == (newer.digest, 12, 4)


@pytest.mark.rabbitmq
@pytest.mark.redis
async def test_over_rabbitmq_and_redis_it_ends_with_the_same_bits(
    tmp_path: Path, rabbitmq_url: str, redis_url: str
) -> None:
    """The store may lose its last second here: what is handed over has waited it out."""
    old, newer = toy_job(toy.Variant(epochs=2)), toy_job(toy.Variant(epochs=3))
    states = []
    for name in ("here", "there"):
        config = config_of(tmp_path / name)
        place = {} if name == "here" else {"broker": rabbitmq_url, "store": redis_url}
        async with serving(old, **place) as cluster:
            await live(cluster, config)
            await cluster.store.put_job(newer)
            result, agent = await live(cluster, replace(config, new_version=True))
            assert (result.job, result.step, result.taken, result.done) == (newer.digest, 12, 4, True)
            meta = await cluster.store.session("toy.phone-1")
            assert meta is not None
            assert (meta.job_digest, meta.committed) == (newer.digest, 12)
            states.append({**state_of(agent), **await cluster.store.read_snapshot("toy.phone-1", 12)})
    here, there = states
    assert here.keys() == there.keys()
    assert [n for n, value in here.items() if not _same(value, there[n])] == []


def _same(one: torch.Tensor | bytes, other: torch.Tensor | bytes) -> bool:
    if isinstance(one, bytes) or isinstance(other, bytes):
        return one == other
    return torch.equal(one, other)
