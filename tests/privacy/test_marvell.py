"""Marvell's noise: the least telling for its power, for two classes only, a function of secret and values."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server_worker.store.keys import StoreKeys
from spliteasy.errors import JobError
from spliteasy.job import Job, parse_job
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.defences.marvell import Variances, divergence, least_telling, noisy, positives
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.runtime.randomness import Key
from spliteasy_cli.support.comparison import compare, prepare
from tests.drawn import key_of
from tests.simulation import toy

CASES = [
    {"gap": 1.0, "spread": (0.02, 0.02), "dims": 32, "positive": 0.5},
    {"gap": 4.0, "spread": (0.01, 0.2), "dims": 16, "positive": 0.1},
    {"gap": 0.5, "spread": (0.3, 0.05), "dims": 8, "positive": 0.8},
    {"gap": 2.0, "spread": (0.0, 0.0), "dims": 1, "positive": 0.3},
]


def power_of(found: Variances, dims: int, positive: float) -> float:
    shares = (1 - positive, positive)
    return sum(w * (a + (dims - 1) * b) for w, a, b in zip(shares, found.along, found.across, strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['dims']} dims")
@pytest.mark.parametrize("power", [0.5, 4.0])
def test_no_other_noise_of_the_same_power_tells_less(case: dict, power: float) -> None:  # type: ignore[type-arg]
    """Beside it: equal noise in all directions, noise along the difference only, and thousands at random."""
    found = least_telling(power=power, **case)
    dims, positive = case["dims"], case["positive"]
    assert power_of(found, dims, positive) == pytest.approx(power, rel=1e-6)
    rest = {name: case[name] for name in ("gap", "spread", "dims")}
    least = divergence(found, **rest)
    even = Variances((power / dims,) * 2, (power / dims,) * 2)
    along = Variances((power, power), (0.0, 0.0))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(4000, 4, generator=generator, dtype=torch.float64) ** 3
    for one in [even, along, *(Variances((r[0], r[1]), (r[2], r[3])) for r in drawn.tolist())]:
        size = power / power_of(one, dims, positive)
        scaled = Variances(
            (one.along[0] * size, one.along[1] * size), (one.across[0] * size, one.across[1] * size)
        )
        assert least <= divergence(scaled, **rest) * (1 + 1e-3) + 1e-9


def batch(count: int = 4000, dims: int = 12, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """Rows of two classes that single rows tell apart without error."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.rand(count, generator=generator) < share).long()
    rows = torch.randn(count, dims, generator=generator, dtype=torch.float64) * 0.05
    rows[:, 0] += torch.where(labels > 0, 2.0, -0.3)
    return rows, labels


def auc(scores: Tensor, labels: Tensor) -> float:
    """How often a row of class 1 scores more than one of class 0."""
    ranks = scores.argsort().argsort().double()
    ones = labels > 0
    count = int(ones.sum())
    over = float(ranks[ones].sum()) - count * (count - 1) / 2
    return over / (count * (len(labels) - count))


@pytest.mark.parametrize("power", [1.0, 4.0, 16.0])
def test_single_rows_tell_no_more_than_the_bound(power: float) -> None:
    """By the difference of the means, the best that a linear score can do, and by the norm."""
    rows, labels = batch()
    normal = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = noisy(rows, positives(labels), power, normal)
    assert made is not None
    ones = labels > 0
    difference = rows[ones].mean(0) - rows[~ones].mean(0)
    gap = float(difference.square().sum())
    spread = tuple(
        float((rows[m] - rows[m].mean(0)).square().sum(1).mean()) / rows.shape[1] for m in (~ones, ones)
    )
    positive = float(ones.double().mean())
    found = least_telling(
        gap=gap, spread=(spread[0], spread[1]), dims=rows.shape[1], positive=positive, power=power * gap
    )
    tells = divergence(found, gap=gap, spread=(spread[0], spread[1]), dims=rows.shape[1])
    bound = 0.5 + tells**0.5 / 2 - tells / 8 if tells < 4 else 1.0
    assert auc(rows @ difference, labels) > 0.999
    for scores in (made @ difference, made.norm(dim=1)):
        assert abs(auc(scores, labels) - 0.5) + 0.5 <= bound + 0.02
    assert float((made - rows).square().sum(1).mean()) == pytest.approx(power * gap, rel=0.05)


def test_a_batch_of_one_class_has_nothing_to_hide_from_each_other() -> None:
    rows, _ = batch(count=6)
    assert noisy(rows, torch.ones(6, dtype=torch.bool), 4.0, torch.zeros_like(rows)) is None


def transforms(key: Key) -> CutTransforms:
    job = toy.job(toy.Variant())
    return CutTransforms(PrivacySpec(marvell=4.0), key, head=job.head, tail=job.tail)


def test_noise_on_all_gradients_of_a_sample_follows_from_secret_step_and_values() -> None:
    rows, labels = batch(count=10)
    given = (rows[:, :4].float(), None, rows[:, 4:].float().reshape(10, 2, 4))
    one, absent, other = transforms(key_of()).gradients(given, (labels,), step=1)
    assert absent is None
    assert one is not None
    assert other is not None
    assert other.shape == (10, 2, 4)
    assert other.dtype == torch.float32
    again = transforms(key_of()).gradients(given, (labels,), step=1)
    assert again[0] is not None
    assert torch.equal(one, again[0])
    for changed in (
        transforms(Key(bytes(32))).gradients(given, (labels,), step=1),
        transforms(key_of()).gradients(given, (labels,), step=2),
        transforms(key_of()).gradients((given[0] + 1e-3, None, given[2]), (labels,), step=1),
    ):
        assert changed[0] is not None
        assert not torch.allclose(one - given[0], changed[0] - given[0], atol=1e-2)
    alone = transforms(key_of()).gradients(given, (torch.ones(10),), step=1)
    assert alone[0] is not None
    assert not torch.equal(alone[0], given[0]), "a batch of one class has noise on its lengths"


def test_more_than_two_classes_are_refused_with_the_reason() -> None:
    spec = toy.job(toy.Variant()).spec
    with pytest.raises(JobError, match="this job's output has 3 numbers") as caught:
        Job.create(spec.model_copy(update={"privacy": PrivacySpec(marvell=4.0)}))
    assert "peer_labels" in str(caught.value.hint)


def test_it_needs_two_cuts_and_no_other_noise_on_gradients() -> None:
    spec = replace(toy.Variant(), single=True)
    job = toy.job(spec).spec
    single = job.model_copy(update={"privacy": PrivacySpec(marvell=4.0)})
    with pytest.raises(JobError, match="marvell"):
        Job.create(single)
    for other in ({"gradient_noise": "max_norm"}, {"dp": {"epsilon": 1.0, "expected_batch": 4}}):
        with pytest.raises(JobError):
            parse_job({**job.model_dump(), "privacy": {"marvell": 4.0, **other}})


TOML = """
name = "two-classes"
seed = 1
batch_size = 8
micro_batches = 2
epochs = 1
loss.name = "cross_entropy"
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }
privacy.marvell = 4.0

[model]
factory = "tests.simulation.toy:build_two"
example = "tests.simulation.toy:example"
cuts = ["2", "5"]
"""


def test_split_and_plain_training_are_the_same_bits(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(TOML)
    plan = prepare(file, 2, 1, toy.DATA, tmp_path / "run", bytes(32))
    (found,) = asyncio.run(compare(plan, None, None, StoreKeys(), None, asyncio.Event()))
    assert max(found.differences.values()) == 0
