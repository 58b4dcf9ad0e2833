"""Ignored labels are neither wrong nor weights of the mean, however a batch is cut into micro-batches."""

from __future__ import annotations

from math import isfinite
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from device_agent.link.speed import LinkSpeed
from device_agent.training.codec_policy import BySpeed, StepChoices
from device_agent.training.data import BatchOrder, EvaluationBatches, load_dataset
from device_agent.training.ends import draw_ends
from device_agent.training.trainer import DeviceTrainer
from server_worker.replica.direct_body import DirectBody
from spliteasy.errors import DataError, JobError
from spliteasy.job import Job
from spliteasy.job.source import build_model
from spliteasy.training.losses import LOSSES, LossFunction
from spliteasy.training.reference import PlainTraining, begin_with
from spliteasy.training.segment_trainer import STEP_KEY
from tests.device import labelled
from tests.drawn import key_of
from tests.simulation import toy

NAMED: dict[str, Any] = {"name": "cross_entropy"}
WEIGHTED = {"function": "tests.device.labelled:weighted"}
PADDED = {"function": "tests.device.labelled:zero_is_padding"}
FUNCTIONS = {"weighted": labelled.weighted, "zero_is_padding": labelled.zero_is_padding}


def loss_of(loss: dict[str, Any]) -> LossFunction:
    if "name" in loss:
        return LOSSES[loss["name"]]
    function = FUNCTIONS[loss["function"].partition(":")[2]]
    return lambda outputs, targets: function(outputs[0], targets[0])


def trainer_of(job: Job, data: str = "device_data") -> tuple[DeviceTrainer, DirectBody]:
    found = load_dataset(f"tests.device.labelled:{data}", "phone-1", job.signature)
    assert found.test is not None
    key = key_of(job=job.digest)
    batches = BatchOrder(found.train, job.spec, job.signature, device="phone-1", key=key, labels=key)
    tests = EvaluationBatches(found.test, job.spec, job.signature, device="phone-1", key=key)
    choices = StepChoices(job.spec.link, BySpeed(job.spec.link, LinkSpeed()), ahead=1)
    trainer = DeviceTrainer.create(
        job, batches, tests, device="phone-1", key=key, ends=draw_ends(job, key), choices=choices
    )
    return trainer, DirectBody(job, f"{job.name}.phone-1")


def evaluated(trainer: DeviceTrainer, body: DirectBody) -> None:
    for index in range(len(trainer.evaluator.tests or ())):
        head = trainer.evaluator.head_values(index)
        request = toy.m.Eval(
            session=body.session,
            attempt=toy.m.AttemptRef(number=1, nonce="0" * 16),
            step=0,
            samples=head.samples,
            **toy.m.carried(head.values),
        )
        trainer.evaluator.take_outputs(index, body.evaluate(request))


@pytest.mark.parametrize("single", [False, True], ids=["two cuts", "one cut"])
@pytest.mark.parametrize("loss", [NAMED, WEIGHTED, PADDED], ids=["by name", "weighted", "own ignore_index"])
def test_micro_batches_train_what_plain_pytorch_trains(loss: dict[str, Any], single: bool) -> None:
    job = labelled.job_of(loss, micro_batches=3, single=single)
    own, body, _ = toy.train_alone(job, "tests.device.labelled:device_data", "phone-1")
    model, _, _ = build_model(job.spec)
    key = key_of(job=job.digest)
    ends = draw_ends(job, key)
    plain = PlainTraining(job, model, loss_of(loss), device="phone-1", key=key, ends=ends)
    trainer, _ = trainer_of(job)
    losses = [plain.step(*trainer.batches.batch(step)) for step in range(1, trainer.batches.total_steps + 1)]
    assert sum(map(isfinite, losses)) > len(losses) / 2, "a batch without any label has no loss"
    split = {name.removeprefix("head/").removeprefix("tail/"): value for name, value in own.items()} | body
    split.pop(STEP_KEY)
    expected = plain.state()
    assert split.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(split[name], expected[name])] == []


@pytest.mark.parametrize("loss", [NAMED, WEIGHTED, PADDED], ids=["by name", "weighted", "own ignore_index"])
def test_shares_give_the_mean_over_the_whole_batch(loss: dict[str, Any]) -> None:
    job = labelled.job_of(loss, micro_batches=3)
    trainer, _ = trainer_of(job)
    inputs, targets = trainer.batches.batch(1)
    model, _, _ = build_model(job.spec)
    function, outputs = loss_of(loss), model(*inputs).detach()
    whole = function((outputs,), targets)
    parts = [(outputs[row : row + 2], targets[0][row : row + 2]) for row in (0, 2, 4)]
    shares = job.measure.shares([(tags,) for _, tags in parts])
    summed = sum(
        function((scores,), (tags,)) * share
        for (scores, tags), share in zip(parts, shares, strict=True)
        if share
    )
    assert torch.allclose(whole, torch.as_tensor(summed))
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("single", [False, True], ids=["two cuts", "one cut"])
def test_a_batch_without_a_label_has_no_loss_and_spoils_nothing(micro_batches: int, single: bool) -> None:
    job = labelled.job_of(NAMED, micro_batches=micro_batches, single=single)
    trainer, body = trainer_of(job, "unlabelled_data")
    before = {name: tensor.clone() for name, tensor in trainer.head.segment.named_parameters()}
    toy.take_step(trainer, body, 1, lambda _: None)
    assert (trainer.step, trainer.loss) == (1, None)
    assert all(torch.equal(before[name], p) for name, p in trainer.head.segment.named_parameters())
    evaluated(trainer, body)
    assert (trainer.evaluator.result.mean_loss, trainer.evaluator.result.accuracy) == (None, None)


def test_an_evaluation_counts_labelled_words_only() -> None:
    job = labelled.job_of(NAMED, micro_batches=1)
    trainer, body = trainer_of(job)
    evaluated(trainer, body)
    found = load_dataset("tests.device.labelled:device_data", "phone-1", job.signature)
    assert found.test is not None
    words, tags = found.test.tensors  # type: ignore[attr-defined]
    model, _, _ = build_model(job.spec)
    begin_with(model, draw_ends(job, key_of(job=job.digest)))
    scores: Tensor = model.eval()(words).detach()
    right = (scores.argmax(1) == tags)[tags != -100]
    assert trainer.evaluator.result.counted == right.numel() < tags.numel()
    assert trainer.evaluator.result.accuracy == int(right.sum()) / right.numel()
    assert trainer.evaluator.result.mean_loss == pytest.approx(float(F.cross_entropy(scores, tags)))


@pytest.mark.parametrize("name", ["summed", "by_hand"])
def test_a_loss_that_is_no_mean_over_samples_is_refused_in_micro_batches(name: str) -> None:
    loss = {"function": f"tests.device.labelled:{name}"}
    with pytest.raises(JobError, match=r"would train something else.*micro_batches = 1"):
        labelled.job_of(loss, micro_batches=2)
    labelled.job_of(loss, micro_batches=1)


def test_terms_that_count_unlike_are_refused_at_the_batch_where_they_do() -> None:
    """The mean of the scores' squares is over all words, that of the cross-entropy over labelled ones."""
    job = labelled.job_of({"function": "tests.device.labelled:regularised"}, micro_batches=2)
    trainer, _ = trainer_of(job)
    with pytest.raises(DataError, match=r"several terms.*micro_batches = 1"):
        trainer.run_head(1)


def test_a_worker_refuses_a_micro_batch_that_counts_for_more_than_its_batch() -> None:
    job = labelled.job_of(NAMED, micro_batches=2, single=True)
    trainer, body = trainer_of(job)
    head = trainer.run_head(1)
    assert head.counted is not None
    targets = tuple(map(torch.zeros_like, head.targets))  # all of them are labelled
    request = toy.m.Forward(
        session=body.session,
        attempt=toy.m.AttemptRef(number=1, nonce="0" * 16),
        step=1,
        samples=head.samples,
        batch=head.batch,
        targets=len(targets),
        counted=head.counted / 1000,
        oldest_checkpoint=0,
        **toy.m.carried(head.values, *targets),
    )
    with pytest.raises(DataError, match="counts for"):
        body.forward(request)
