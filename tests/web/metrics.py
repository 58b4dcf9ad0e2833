"""What Python counts and measures beside a loss, over some batches: for the tests of the browser's agent."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from spliteasy.errors import DataError, JobError
from spliteasy.graph.tensors import tensors_to_bytes
from spliteasy.splitting.losses import PortableLoss, trace_function
from spliteasy.training.losses import LOSSES, LossFunction
from spliteasy.training.measures import Measure, named_measure
from spliteasy.training.metrics import make_metric
from spliteasy.training.traced_measure import traced_measure
from tests.web.cases import packed

Batch = tuple[Tensor, Tensor]
NAMES = ("accuracy", "token_accuracy", "top_5", "f1", "iou", "auc", "perplexity", "mae", "rmse")
IGNORED = -100


def measured() -> Iterator[dict[str, Any]]:
    """Losses by name and traced ones, each over three batches of unequal size."""
    torch.manual_seed(7)
    yield _named("cross_entropy", [_classes(size, 7) for size in (5, 4, 1)])
    yield _named("cross_entropy of two classes", [_classes(size, 2) for size in (6, 3, 5)])
    yield _named("cross_entropy of tokens", [_tokens(size, ignored=2) for size in (3, 2, 1)])
    yield _named("cross_entropy of probabilities", [_probabilities(size) for size in (4, 2, 3)])
    yield _named("bce_with_logits", [_answers(size) for size in (8, 5, 2)])
    yield _named("mse", [(torch.randn(size, 3), torch.randn(size, 3)) for size in (4, 3, 2)])
    yield _traced("weights and an ignored class", _weighted, [_classes(size, 4) for size in (5, 4, 3)])
    yield _traced("shifted tokens", _shifted, [_tokens(size, ignored=1) for size in (3, 2, 2)])
    yield _traced("two terms", _two_terms, [_tokens(2, ignored=count) for count in (0, 2, 4)])
    yield _traced("a sum", _summed, [_classes(size, 3) for size in (4, 3, 2)])
    yield _traced("probabilities of yes", _likely, [_answers(size) for size in (6, 4, 3)])
    yield _traced("no classes", _distance, [_classes(size, 3) for size in (4, 3, 2)])


def _named(name: str, batches: Sequence[Batch]) -> dict[str, Any]:
    loss = name.split(" ")[0]
    return _record(name, {"name": loss}, LOSSES[loss], named_measure(loss), batches)


def _traced(name: str, fn: Callable[..., Tensor], batches: Sequence[Batch]) -> dict[str, Any]:
    outputs, targets = batches[0]
    loss: PortableLoss = trace_function(fn, (outputs,), (targets,))
    measure = traced_measure(loss.document, tuple(loss.tensors().values()), 1)
    tensors = tensors_to_bytes(loss.tensors())
    source = {"graph": _text(loss.graph_json()), "tensors": _text(tensors), "targets": 1}
    return _record(name, source, loss, measure, batches)


def _record(
    name: str, source: dict[str, Any], loss: LossFunction, measure: Measure, batches: Sequence[Batch]
) -> dict[str, Any]:
    metrics, refused = {}, []
    for metric in NAMES:
        if metric in ("mae", "rmse") and batches[0][0].shape != batches[0][1].shape:
            continue
        try:
            made = make_metric(metric, loss, measure, {})
        except JobError:
            refused.append(metric)
            continue
        for outputs, targets in batches:
            made.add((outputs,), (targets,))
        metrics[metric] = made.value()
    return {
        "name": name,
        "loss": source,
        "batches": [
            {
                "outputs": [packed(outputs)],
                "targets": [packed(targets)],
                "elements": measure.elements((targets,)),
                "right": measure.right((outputs,), (targets,)),
            }
            for outputs, targets in batches
        ],
        "shares": _shares(measure, [(targets,) for _, targets in batches]),
        "metrics": metrics,
        "refused": refused,
    }


def _shares(measure: Measure, parts: Sequence[tuple[Tensor, ...]]) -> list[float] | None:
    try:
        return measure.shares(parts)
    except DataError:
        return None


def _classes(size: int, classes: int) -> Batch:
    return torch.randn(size, classes), torch.randint(0, classes, (size,))


def _tokens(size: int, *, ignored: int) -> Batch:
    labels = torch.randint(0, 6, (size, 5))
    labels[:, :ignored] = IGNORED
    return torch.randn(size, 6, 5), labels


def _probabilities(size: int) -> Batch:
    return torch.randn(size, 3), torch.randn(size, 3).softmax(1)


def _answers(size: int) -> Batch:
    scores = (torch.randn(size, 2) * 4).round() / 4  # some are equal
    return scores, (torch.rand(size, 2) < 0.4).float()


def _weighted(scores: Tensor, labels: Tensor) -> Tensor:
    weight = torch.tensor([0.5, 1.0, 2.0, 1.5])
    return 3.0 * F.cross_entropy(scores, labels, weight=weight, ignore_index=3)


def _shifted(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores[:, :, :-1], labels[:, 1:])


def _two_terms(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels) + 0.1 * scores.square().mean()


def _summed(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, reduction="sum")


def _likely(scores: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy(scores.sigmoid(), labels)


def _distance(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.sum(1) - labels).square().mean()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
