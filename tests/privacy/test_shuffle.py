"""Tokens cross in an order that only the device knows, and the training is the one of plain PyTorch."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness.patch_digits import Mixing, Patches, PatchNet, job_of
from server_worker.store.keys import StoreKeys
from spliteasy.errors import JobError
from spliteasy.job import Job, parse_job
from spliteasy.privacy.defences.shuffle import drawn_order, restored, shuffled
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.privacy.statistics import put_in_order
from spliteasy.runtime.randomness import Key
from spliteasy_cli.support.comparison import compare, prepare
from tests.drawn import key_of
from tests.privacy.conftest import ROOT

SHUFFLED = {"shuffle_tokens": True}


def test_each_sample_has_an_order_of_its_own_that_is_undone() -> None:
    value = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    order = drawn_order(key_of(), 6, 5)
    assert all(sorted(row) == list(range(5)) for row in order.tolist())
    assert len({tuple(row) for row in order.tolist()}) > 1
    mixed = shuffled(value, order)
    assert torch.equal(restored(mixed, order), value)
    assert not torch.equal(mixed, value)
    mixed[:, 0].sum().backward()  # type: ignore[no-untyped-call]
    assert value.grad is not None
    assert torch.equal(value.grad.sum((1, 2)), torch.full((6,), 3.0))
    pooled = torch.zeros(6, 3)
    assert shuffled(pooled, order) is pooled


@pytest.fixture(scope="module")
def job() -> Job:
    return Job.create(parse_job(job_of(1, 1, **SHUFFLED)), ROOT)


def test_the_order_follows_from_secret_step_purpose_and_values(job: Job) -> None:
    def order(clean: Tensor, key: Key, step: int = 1, purpose: str = "activations") -> Tensor:
        transforms = CutTransforms(job.spec.privacy, key, head=job.head, tail=job.tail)
        found = transforms.order((clean,), purpose=purpose, step=step)  # type: ignore[arg-type]
        assert found is not None
        return found

    clean = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(0))
    first = order(clean, key_of())
    assert torch.equal(first, order(clean.clone(), key_of()))
    for other in (
        order(clean + 1e-3, key_of()),
        order(clean, Key(bytes(32))),
        order(clean, key_of(), step=2),
        order(clean, key_of(), purpose="evaluation"),
    ):
        assert not torch.equal(first, other)


class WithPositions(nn.Module):
    """Positions in the body that are zero at first: only other weights show them."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(1, 16, 32))
        self.mixing = Mixing()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mixing(x + self.places)
        return out


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(32, 32, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.rows(x)[0]
        return out


class AlongTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)


def with_body(body: nn.Module) -> nn.Module:
    net = PatchNet()
    net.body = nn.Sequential(Mixing(), body)
    return net


def positions() -> nn.Module:
    return with_body(WithPositions())


def causal() -> nn.Module:
    return with_body(Causal())


def along() -> nn.Module:
    return with_body(AlongTokens())


def images() -> nn.Module:
    """No tokens: a picture crosses the first cut."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 20), nn.Linear(20, 10))


@pytest.mark.parametrize("factory", [positions, causal, along])
def test_a_body_that_knows_places_is_refused(factory: object) -> None:
    content = job_of(1, 1, **SHUFFLED)
    content["model"]["factory"] = f"{__name__}:{getattr(factory, '__name__', '')}"
    with pytest.raises(JobError, match="the body computes something else"):
        Job.create(parse_job(content), ROOT)


def test_values_that_are_no_tokens_are_refused() -> None:
    content = job_of(1, 1, **SHUFFLED)
    content["model"] |= {"factory": f"{__name__}:images", "cuts": ["0", "2"]}
    with pytest.raises(JobError, match=r"needs one value of \[batch, tokens, features\].*\[batch, 4, 6, 6\]"):
        Job.create(parse_job(content), ROOT)


def test_one_cut_is_refused_where_the_worker_would_need_the_order() -> None:
    """Here the body pools, so that a single cut has nothing to put back."""
    content = job_of(1, 1, **SHUFFLED) | {"share_labels": True}
    content["model"]["cuts"] = ["stem"]
    assert Job.create(parse_job(content), ROOT).tail is None


TOML = """
name = "patches"
seed = 1
batch_size = 8
micro_batches = 2
epochs = 1
loss.name = "cross_entropy"
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }
privacy = { shuffle_tokens = true, clip_activations = 4.0, noise_activations = 0.01, gradient_noise = 0.3 }

[model]
factory = "benchmarks.harness.patch_digits:build"
example = "examples.digits.model:example"
cuts = ["stem", "body"]
"""


def test_split_and_plain_training_are_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(TOML)
    plan = prepare(file, 3, 1, "examples.digits:device_data", tmp_path / "run", bytes(32))
    (found,) = asyncio.run(compare(plan, None, None, StoreKeys(), None, asyncio.Event()))
    assert max(found.differences.values()) == 0


def test_who_knows_the_head_puts_tokens_back_by_their_positions() -> None:
    torch.manual_seed(0)
    head = Patches()
    with torch.no_grad():
        known, seen = head(torch.rand(64, 1, 8, 8)), head(torch.rand(12, 1, 8, 8))
    mixed = shuffled(seen, drawn_order(key_of(), 12, 16))
    right = (put_in_order(known, mixed) == seen).all(2).double().mean()
    assert float(right) > 0.5
    assert float((mixed == seen).all(2).double().mean()) < 0.1
