"""Metrics of an evaluation are those of scikit-learn, over batches, ignored labels and shifted tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor
from torch.nn import functional as F

from spliteasy.errors import JobError
from spliteasy.job import Job, JobSpec
from spliteasy.splitting.losses import trace_function
from spliteasy.training.losses import LOSSES
from spliteasy.training.measures import Measure, named_measure
from spliteasy.training.metrics import make_metric
from spliteasy.training.traced_measure import traced_measure
from tests.job.test_optim import spec_with
from tests.simulation import toy

BATCHES = (5, 1, 7)


def measured(name: str, loss: str, outputs: Tensor, targets: Tensor) -> float | None:
    """The metric over batches of several sizes."""
    metric = make_metric(name, LOSSES[loss], named_measure(loss), {})
    for part, wanted in zip(outputs.split(BATCHES), targets.split(BATCHES), strict=True):
        metric.add((part,), (wanted,))
    return metric.value()


def classes(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    scores = torch.randn(sum(BATCHES), count, generator=generator)
    return scores, torch.randint(count, (sum(BATCHES),), generator=generator)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def test_of_many_classes(generator: torch.Generator) -> None:
    scores, labels = classes(7, generator)
    kept = labels.clone()
    labels[[0, 8]] = -100
    there = labels >= 0
    seen, truth, guess = scores[there], kept[there], scores[there].argmax(1)
    expected = {
        "accuracy": sk.accuracy_score(truth, guess),
        "top_5": sk.top_k_accuracy_score(truth, seen, k=5, labels=range(7)),
        "f1": sk.f1_score(truth, guess, average="macro"),
        "iou": sk.jaccard_score(truth, guess, average="macro"),
        "perplexity": float(F.cross_entropy(seen, truth).exp()),
    }
    for name, value in expected.items():
        assert measured(name, "cross_entropy", scores, labels) == pytest.approx(value), name
    areas = [sk.roc_auc_score(truth == each, seen.softmax(1)[:, each]) for each in set(truth.tolist())]
    assert measured("auc", "cross_entropy", scores, labels) == pytest.approx(sum(areas) / len(areas))


def test_of_yes_and_no(generator: torch.Generator) -> None:
    scores = torch.randn(sum(BATCHES), 3, generator=generator).round(decimals=1)  # with ties
    labels = torch.randint(2, scores.shape, generator=generator).float()
    truth, said = labels.flatten(), (scores > 0).flatten()
    expected = {
        "accuracy": sk.accuracy_score(truth, said),
        "f1": sk.f1_score(truth, said),
        "iou": sk.jaccard_score(truth, said),
        "auc": sk.roc_auc_score(truth, scores.flatten()),
    }
    for name, value in expected.items():
        assert measured(name, "bce_with_logits", scores, labels) == pytest.approx(value), name


def test_of_two_classes_and_of_pictures(generator: torch.Generator) -> None:
    scores, labels = classes(2, generator)
    expected = sk.roc_auc_score(labels, scores.softmax(1)[:, 1])
    assert measured("auc", "cross_entropy", scores, labels) == pytest.approx(expected)
    pixels = torch.randn(sum(BATCHES), 4, 3, 2, generator=generator)
    wanted = torch.randint(4, (sum(BATCHES), 3, 2), generator=generator)
    expected = sk.jaccard_score(wanted.flatten(), pixels.argmax(1).flatten(), average="macro")
    assert measured("iou", "cross_entropy", pixels, wanted) == pytest.approx(expected)


def test_of_numbers(generator: torch.Generator) -> None:
    outputs, targets = torch.randn(2, sum(BATCHES), 3, generator=generator)
    expected = sk.mean_absolute_error(targets, outputs)
    assert measured("mae", "mse", outputs, targets) == pytest.approx(expected)
    expected = sk.root_mean_squared_error(targets.flatten(), outputs.flatten())
    assert measured("rmse", "l1", outputs, targets) == pytest.approx(expected)


def next_token(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def test_of_tokens(generator: torch.Generator) -> None:
    """The loss's own shift and its ignored labels count, over batches with unequally many of them."""
    logits = torch.randn(sum(BATCHES), 6, 11, generator=generator)
    labels = torch.randint(11, (sum(BATCHES), 6), generator=generator)
    for row, length in enumerate(torch.randint(2, 7, (len(labels),), generator=generator).tolist()):
        labels[row, length:] = -100
    loss = trace_function(next_token, (logits[:2],), (labels[:2],))
    measure: Measure = traced_measure(loss.document, tuple(loss.tensors().values()), 1)
    expected = float(next_token(logits, labels).exp())
    guess, truth = logits[:, :-1].argmax(2), labels[:, 1:]
    right = sk.accuracy_score(truth[truth >= 0], guess[truth >= 0])
    for name, value in {"perplexity": expected, "token_accuracy": right}.items():
        metric = make_metric(name, loss, measure, {})
        for part, wanted in zip(logits.split(BATCHES), labels.split(BATCHES), strict=True):
            metric.add((part,), (wanted,))
        assert metric.value() == pytest.approx(value), name


def test_nothing_counted_is_no_number() -> None:
    scores, labels = torch.randn(13, 3), torch.full((13,), -100)
    for name in ("accuracy", "top_5", "f1", "iou", "auc", "perplexity"):
        assert measured(name, "cross_entropy", scores, labels) is None, name


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    best = outputs.topk(2, dim=1).values
    return (best[:, 0] - best[:, 1]).mean()


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).sum()


def rows(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float()


def job(**evaluation: Any) -> Job:
    spec = toy.job(toy.Variant()).spec
    given = spec.model_dump()
    given["evaluation"] = {**given["evaluation"], **evaluation}
    return Job.create(JobSpec.model_validate(given))


def test_a_function_travels_as_a_graph() -> None:
    made = job(metrics=(f"{__name__}:margin", "f1", f"{__name__}:hits"))
    assert "metrics" in made.needs()
    loaded = Job.from_parts(made.manifest, made.device_parts())
    found = loaded.metrics()
    assert list(found) == [f"{__name__}:margin", "f1", f"{__name__}:hits"]
    outputs, targets = torch.randn(7, 3), torch.randint(3, (7,))
    for part, wanted in zip(outputs.split(4), targets.split(4), strict=True):
        for metric in found.values():
            metric.add((part,), (wanted,))
    assert found[f"{__name__}:margin"].value() == pytest.approx(float(margin(outputs, targets)))
    assert found["f1"].value() == pytest.approx(
        sk.f1_score(targets, outputs.argmax(1), average="macro", zero_division=0)
    )


def test_what_can_not_be_measured_is_refused() -> None:
    for metrics, told in (
        (("acuracy",), "is no metric; use 'accuracy'"),
        (("f1", "f1"), "named twice"),
        (tuple(f"m:f{number}" for number in range(5)), "at most 4 may be functions"),
    ):
        with pytest.raises(JobError, match=told):
            spec_with(evaluation={"metrics": list(metrics)})
    with pytest.raises(JobError, match="metric mae compares the first output"):
        job(metrics=("mae",))
    with pytest.raises(JobError, match=f"the metric {__name__}:rows: a loss must give one scalar"):
        job(metrics=(f"{__name__}:rows",))
    with pytest.raises(JobError, match="top_5 needs scores of classes"):
        make_metric("top_5", LOSSES["mse"], named_measure("mse"), {})
    with pytest.raises(JobError, match="perplexity needs a mean cross-entropy"):
        make_metric("perplexity", LOSSES["mse"], named_measure("mse"), {})
