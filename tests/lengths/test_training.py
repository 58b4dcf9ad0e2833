"""Both sides of a training on samples with lengths: what they pad to, and that it is the plain training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from broker.protocol import messages as m
from device_agent.training import samples as samples_module
from device_agent.training.data import BatchOrder
from spliteasy.errors import DataError
from spliteasy.job import Job
from spliteasy.job.micro_batches import micro_sizes
from spliteasy.job.source import build_model, users_loss
from spliteasy.training.reference import PlainTraining, difference
from spliteasy.training.segment_trainer import STEP_KEY
from tests.drawn import draw_ends, key_of
from tests.lengths import reader
from tests.lengths.reader import LONGEST, job_of
from tests.simulation import toy

DATA = "tests.lengths.reader:device_data"
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("two cuts", {}),
    ("one cut", {"single": True}),
    ("micro-batches", {"micro_batches": 3}),
    ("micro-batches, one cut", {"micro_batches": 4, "single": True}),
    ("dropout", {"micro_batches": 2, "model": {"factory": "tests.lengths.reader:with_dropout"}}),
    (
        "noisy",
        {
            "model": {"factory": "tests.lengths.reader:without_mask"},
            "privacy": {"clip_activations": 1.0, "noise_activations": 0.1, "gradient_noise": 0.1},
        },
    ),
)


def order_of(job: Job, key: Any = None) -> BatchOrder:
    own = key or key_of(job=job.digest)
    train, _ = reader.device_data("phone-1")
    return BatchOrder(train, job.spec, job.signature, device="phone-1", key=own, labels=own)  # type: ignore[arg-type]


def worst_difference(job: Job) -> float:
    """How far training on both sides is from the same by plain PyTorch."""
    own, body, _ = toy.train_alone(job, DATA, "phone-1")
    model, _, _ = build_model(job.spec)
    key = key_of(job=job.digest)
    plain = PlainTraining(
        job, model, users_loss(job.spec, None), device="phone-1", key=key, ends=draw_ends(job, key)
    )
    batches = order_of(job)
    for step in range(1, batches.total_steps + 1):
        plain.step_on_samples(batches.samples(step))
    trained = {
        name.removeprefix("head/").removeprefix("tail/"): tensor for name, tensor in own.items()
    } | body
    trained.pop(STEP_KEY)
    wanted = plain.state()
    assert trained.keys() == wanted.keys()
    return max(difference(trained[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("changes", [kind[1] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_it_is_the_training_of_plain_pytorch(changes: dict[str, Any]) -> None:
    assert worst_difference(job_of(**changes)) == 0


def test_a_device_that_pads_with_another_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken build: labels padded with a class, so that padding counts in the mean."""
    right = samples_module.stacked

    def with_zeros(column: Any, spec: Any, length: int, value: Any) -> Tensor:
        return right(column, spec, length, 0)

    monkeypatch.setattr(samples_module, "stacked", with_zeros)
    assert worst_difference(job_of()) > 1e-4


def test_a_device_that_counts_padding_in_the_mean_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken build: a micro-batch's share of the loss goes by its places."""
    monkeypatch.setattr(
        "spliteasy.training.measures.Classes.elements", lambda self, targets: float(targets[0].numel())
    )
    found = [sent for sent in sent_by(job_of(micro_batches=3, single=True)) if isinstance(sent, m.Forward)]
    assert any(forward.counted != labelled_in(found, forward.step) for forward in found)


def labelled_in(sent: Sequence[m.Forward], step: int) -> float:
    targets = [forward.values[-1] for forward in sent if forward.step == step]
    return float(sum(int((torch.as_tensor(each) != -100).sum()) for each in targets))


def sent_by(job: Job) -> list[m.Request]:
    sent: list[m.Request] = []
    toy.train_alone(job, DATA, "phone-1", sent=sent.append)
    return sent


def test_each_micro_batch_is_as_long_as_its_longest_sample() -> None:
    job = job_of(micro_batches=3, single=True)
    forwards = [sent for sent in sent_by(job) if isinstance(sent, m.Forward)]
    batches, lengths = order_of(job), set()
    for forward in forwards:
        samples = batches.samples(forward.step)
        first = sum(micro_sizes(len(samples), 3)[: forward.micro])
        longest = max(2, *(row[0].shape[0] for row in samples[first : first + forward.samples]))
        assert forward.length == longest
        lengths.add(longest)
        assert torch.as_tensor(forward.values[-1]).shape == (forward.samples, longest)
        assert forward.counted == labelled_in(forwards, forward.step)
    assert len(lengths) > 2


def test_the_padding_of_each_input_is_the_jobs() -> None:
    job = job_of(model={"pad": {"ids": 7, "mask": 0, "next": -100}})
    ((ids, mask), (labels,)), *_ = order_of(job).micro_batches(1)
    for row in range(ids.shape[0]):
        length = int(mask[row].sum())
        assert ids[row, length:].tolist() == [7] * (ids.shape[1] - length)
        assert labels[row, length:].tolist() == [-100] * (ids.shape[1] - length)
    assert ids.shape[1] < LONGEST or int(mask.sum(1).max()) == LONGEST


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ids": torch.zeros(LONGEST + 1, dtype=torch.int64)}, "differ in length"),
        ({name: torch.zeros(LONGEST + 1, dtype=torch.int64) for name in ("ids", "mask", "next")}, "1 to 9"),
        ({name: torch.zeros(0, dtype=torch.int64) for name in ("ids", "mask", "next")}, "length of 0"),
        ({"ids": torch.zeros(3, 3, dtype=torch.int64)}, "expected int64"),
    ],
    ids=["unlike", "too long", "empty", "another shape"],
)
def test_samples_that_the_job_does_not_take_are_named(wrong: dict[str, Tensor], reason: str) -> None:
    job = job_of()
    train = reader.texts(2, 0)
    train[1] = {**train[1], **wrong}
    key = key_of(job=job.digest)
    with pytest.raises(DataError, match=reason):
        BatchOrder(train, job.spec, job.signature, device="d", key=key, labels=key).batch(1)  # type: ignore[arg-type]


def test_an_evaluation_counts_labelled_tokens() -> None:
    job = job_of(evaluation={"batch_size": 2, "metrics": ["perplexity", "token_accuracy"]})
    _, tests = reader.device_data("phone-1")
    trainer, body = toy.both_sides(job, DATA, "phone-1")
    toy.evaluate(trainer, body)
    labelled = sum(int((text["next"] != -100).sum()) for text in tests)
    assert trainer.evaluator.result.counted == labelled
    assert trainer.evaluator.result.elements == labelled
    assert trainer.evaluator.result.mean_loss is not None
    perplexity = trainer.evaluator.result.metrics["perplexity"]
    assert perplexity == pytest.approx(
        float(torch.tensor(trainer.evaluator.result.mean_loss).exp()), rel=1e-5
    )
    assert trainer.evaluator.result.metrics["token_accuracy"] == trainer.evaluator.result.accuracy
