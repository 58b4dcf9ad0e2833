"""Randomized response on labels: what it keeps, what it depends on, and the bound that it proves."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from device_agent.training.data import BatchOrder
from device_agent.training.ends import label_key
from spliteasy.errors import DataError, JobError
from spliteasy.job import Job, JobSpec, load_job_file
from spliteasy.job.spec import LossSpec, PrivacySpec
from spliteasy.privacy.defences.label_dp import RandomizedResponse, classes_to_answer, guarantee
from spliteasy.runtime.randomness import Key
from spliteasy_cli.leakage.gate import measure
from tests.drawn import SECRET, key_of
from tests.privacy.conftest import DATA, DIGITS, ROOT
from tests.simulation import toy

EPSILONS = (5.0, 3.0, 1.0)


def bound(epsilon: float, classes: int) -> float:
    """The theorem's, written as it is stated."""
    return math.exp(epsilon) / (math.exp(epsilon) + classes - 1)


@pytest.mark.parametrize("epsilon", EPSILONS)
@pytest.mark.parametrize("classes", [2, 10])
def test_answers_come_with_the_probabilities_of_the_theorem(epsilon: float, classes: int) -> None:
    count = 20_000
    labels = torch.arange(count) % classes
    answers = RandomizedResponse(epsilon, classes, key_of()).answer(labels, range(count))
    p = bound(epsilon, classes)
    kept = float((answers == labels).double().mean())
    assert abs(kept - p) < 4 * math.sqrt(p * (1 - p) / count)
    moves = torch.bincount((answers - labels)[answers != labels] % classes, minlength=classes)[1:]
    q = (1 - p) / (classes - 1)
    assert (moves / count - q).abs().max() < 5 * math.sqrt(q * (1 - q) / count)


def batches(spec: JobSpec, labels: Key, *, key: Key | None = None, moved: float = 0.0) -> BatchOrder:
    inputs = torch.arange(240.0).reshape(40, 6) + moved
    data = TensorDataset(inputs, torch.arange(40) % 3)
    signature = toy.job(toy.Variant()).signature
    return BatchOrder(data, spec, signature, device="phone-1", key=key or key_of(), labels=labels)


def answered(given: BatchOrder) -> dict[int, int]:
    """The label of each sample, which must be the same in every epoch."""
    found: dict[int, int] = {}
    for step in range(1, given.total_steps + 1):
        for index, label in zip(given.indices(step), given.batch(step)[1][0].tolist(), strict=True):
            assert found.setdefault(index, label) == label
    return found


def spec_with(epsilon: float | None, **keys: Any) -> JobSpec:
    spec = toy.job(toy.Variant()).spec
    return spec.model_copy(update={"privacy": PrivacySpec(label_dp=epsilon), **keys})


def test_answers_are_the_same_in_every_epoch_and_every_job_and_others_for_other_data() -> None:
    own = label_key(SECRET)
    first = answered(batches(spec_with(1.0), own))
    assert len(first) == 40
    assert first != {index: index % 3 for index in range(40)}
    another_job = spec_with(1.0, seed=99, batch_size=5, name="another")
    assert answered(batches(another_job, own, key=key_of("phone-9", job="1" * 64))) == first
    assert answered(batches(spec_with(1.0), own, moved=0.5)) != first
    assert answered(batches(spec_with(1.5), own)) != first
    assert answered(batches(spec_with(1.0), label_key(bytes(32)))) != first


def test_a_label_that_is_left_out_is_refused() -> None:
    labels = torch.tensor([0, -100])
    with pytest.raises(DataError, match="sample 7: label -100"):
        RandomizedResponse(1.0, 3, key_of()).answer(labels, [4, 7])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"loss": {"function": "m:loss"}}, "the loss does not say"),
        ({"dtype": "float32"}, "not one class number"),
        ({"shape": (4,)}, "not one class number"),
        ({"outputs": (3, 4)}, "two classes or more"),
    ],
)
def test_what_is_no_class_label_is_refused(changed: dict[str, Any], says: str) -> None:
    job = toy.job(toy.Variant())
    (target,), (output,) = job.signature.targets, job.signature.outputs
    loss = type(job.spec.loss).model_validate(changed.get("loss", {"name": "cross_entropy"}))
    target = target.model_copy(update={k: changed[k] for k in ("dtype", "shape") if k in changed})
    output = output.model_copy(update={"shape": changed.get("outputs", output.shape)})
    signature = job.signature.model_copy(update={"targets": (target,), "outputs": (output,)})
    with pytest.raises(JobError, match=says):
        classes_to_answer(job.spec.model_copy(update={"loss": loss}), signature)


def test_a_guarantee_names_its_adversary() -> None:
    text = guarantee(1.0, 10)
    assert "1-differentially private" in text
    assert "anybody who sees what the device sends" in text
    assert "0.232 at most (0.100 by guessing)" in text


async def recovered(epsilon: float, seed: int) -> tuple[float, int]:
    """The largest share of canaries that an attack on the public job recovers, and how many there are."""
    spec = load_job_file(DIGITS)
    privacy = PrivacySpec(ends="public", label_dp=epsilon)
    measured = await measure(
        spec.model_copy(update={"privacy": privacy}), ROOT, DATA, attacks=ATTACKS, seed=seed, steps=18
    )
    scores = [row.score for row in measured.rows if row.score and row.score.limit == "canary_recovery"]
    return max(score.value for score in scores), min(score.samples for score in scores)


ATTACKS = ("tail-tracking", "few-labels")
"""The first reads every label that is trained on off the wire, to the last one."""


def test_no_canary_is_recovered_beyond_the_bound_by_an_attack_that_reads_every_label() -> None:
    value, count = asyncio.run(recovered(1.0, 0))
    p = bound(1.0, 10)
    assert value <= p + 3 * math.sqrt(p * (1 - p) / count)


@pytest.mark.long
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_canaries_keep_to_the_bound_at_every_epsilon(epsilon: float) -> None:
    p, found, samples = bound(epsilon, 10), [], 0
    for seed in range(5):
        value, count = asyncio.run(recovered(epsilon, seed))
        found.append(value * count)
        samples += count
    assert sum(found) / samples <= p + 3 * math.sqrt(p * (1 - p) / samples)


def test_a_job_whose_labels_are_no_classes_is_refused_where_it_is_made() -> None:
    spec = spec_with(1.0, loss=LossSpec(name="mse"))
    with pytest.raises(JobError):
        Job.create(spec)
