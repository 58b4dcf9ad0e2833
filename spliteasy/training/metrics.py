"""Metrics of an evaluation, by name or by a function of the user's: each is gathered over all test batches.

What classifies is read from where the job's loss compares scores with labels (`Measure.predictions`), so that
ignored labels, shifted tokens and reshaped scores count as the loss counts them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.training.losses import LossFunction
from spliteasy.training.measures import Classes, Measure, Tensors, YesNo

_ERRORS = {"mae": 1, "rmse": 2}


class Metric(Protocol):
    """A metric over the test batches so far."""

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        """Count a batch."""
        ...

    def value(self) -> float | None:
        """The metric of all batches; None where nothing could be counted."""
        ...


@dataclass(slots=True)
class Accuracy:
    """The share of labelled elements whose prediction is right."""

    predictions: Classes | YesNo
    right: int = 0
    counted: int = 0

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        right, counted = self.predictions.right(outputs, targets) or (0, 0)
        self.right, self.counted = self.right + right, self.counted + counted

    def value(self) -> float | None:
        return self.right / self.counted if self.counted else None


@dataclass(slots=True)
class TopFive:
    """The share of labelled elements whose class is among the five with the best scores."""

    predictions: Classes
    right: int = 0
    counted: int = 0

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        scores, labels = self.predictions.judged(outputs, targets)
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices
        self.right += int((best == labels[:, None]).sum())
        self.counted += len(labels)

    def value(self) -> float | None:
        return self.right / self.counted if self.counted else None


@dataclass(slots=True)
class Confusion:
    """The predictions against the labels, as counts [label, prediction], and a number made of them."""

    predictions: Classes | YesNo
    union: bool
    """Intersection over union, in place of F1."""
    counts: Tensor | None = None

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        scores, labels = self.predictions.judged(outputs, targets)
        if isinstance(self.predictions, YesNo):
            classes, guess = 2, (scores > self.predictions.threshold).long()
        else:
            classes, guess = scores.shape[1], scores.argmax(1)
        counts = torch.bincount(labels * classes + guess, minlength=classes**2).reshape(classes, classes)
        self.counts = counts if self.counts is None else self.counts + counts

    def value(self) -> float | None:
        """The number of "yes", or its mean over the classes that are labels or predictions."""
        if self.counts is None:
            return None
        hit = self.counts.diagonal().double()
        both = (self.counts.sum(0) + self.counts.sum(1)).double()
        shares = hit / (both - hit) if self.union else 2 * hit / both
        seen = both > 0
        if isinstance(self.predictions, YesNo):
            return float(shares[1]) if bool(seen[1]) else None
        return float(shares[seen].mean()) if bool(seen.any()) else None


@dataclass(slots=True)
class Auc:
    """The area under the ROC curve; of more than two classes the mean of each against the rest.

    All scores are needed at once: they are kept until the evaluation ends.
    """

    predictions: Classes | YesNo
    scores: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        scores, labels = self.predictions.judged(outputs, targets)
        if scores.dim() == 2:
            scores = scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores.softmax(1)
        self.scores.append(scores)
        self.labels.append(labels)

    def value(self) -> float | None:
        if not self.scores:
            return None
        scores, labels = torch.cat(self.scores), torch.cat(self.labels)
        if scores.dim() == 1:
            return _area(scores, labels == 1)
        areas = [_area(scores[:, each], labels == each) for each in range(scores.shape[1])]
        found = [area for area in areas if area is not None]
        return sum(found) / len(found) if found else None


def _area(scores: Tensor, positive: Tensor) -> float | None:
    """The share of pairs of a positive and a negative whose scores are in order; ties count half."""
    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return None
    _, place, count = torch.unique(scores, return_inverse=True, return_counts=True)
    ranks = (count.cumsum(0).double() - (count.double() - 1) / 2)[place]
    return float((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


@dataclass(slots=True)
class Errors:
    """The mean absolute error of the first output to the first target, or the root of the mean square."""

    power: int
    total: float = 0.0
    counted: int = 0

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        error = outputs[0].detach().double() - targets[0].double()
        self.total += float(error.abs().pow(self.power).sum())
        self.counted += error.numel()

    def value(self) -> float | None:
        return (self.total / self.counted) ** (1 / self.power) if self.counted else None


@dataclass(slots=True)
class Perplexity:
    """The exponential of the mean loss over labelled elements."""

    loss: LossFunction
    measure: Measure
    total: float = 0.0
    counted: float = 0.0

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        elements = self.measure.elements(targets)
        if elements:
            self.total += float(self.loss(outputs, targets)) * elements
            self.counted += elements

    def value(self) -> float | None:
        mean = self.total / self.counted if self.counted else None
        return None if mean is None else math.exp(mean) if mean < math.log(1e300) else math.inf


@dataclass(slots=True)
class OfBatches:
    """A function of the user's: its mean over the test batches, each counted by its samples."""

    function: LossFunction
    total: float = 0.0
    counted: int = 0

    def add(self, outputs: Tensors, targets: Tensors) -> None:
        samples = targets[0].shape[0]
        self.total += float(self.function(outputs, targets)) * samples
        self.counted += samples

    def value(self) -> float | None:
        return self.total / self.counted if self.counted else None


def make_metric(
    name: str, loss: LossFunction, measure: Measure, functions: Mapping[str, LossFunction]
) -> Metric:
    """The metric of that name, before the first batch. Raises JobError where the job's loss has nothing to
    read it from."""
    if name in functions:
        return OfBatches(functions[name])
    if name in _ERRORS:
        return Errors(_ERRORS[name])
    shown = measure.predictions
    if name == "perplexity" and isinstance(shown, Classes) and measure.means and measure.proportional:
        return Perplexity(loss, measure)
    if name == "top_5" and isinstance(shown, Classes):
        return TopFive(shown)
    made: dict[str, Callable[[Classes | YesNo], Metric]] = {
        "accuracy": Accuracy,
        "token_accuracy": Accuracy,
        "f1": lambda predictions: Confusion(predictions, union=False),
        "iou": lambda predictions: Confusion(predictions, union=True),
        "auc": Auc,
    }
    if shown is not None and name in made:
        return made[name](shown)
    wanted = "a mean cross-entropy" if name == "perplexity" else "scores of classes compared with labels"
    raise JobError(
        f"the metric {name} needs {wanted}, and the job's loss shows none",
        hint='use a loss that does, or give the metric as a function: metrics = ["my.model:score"]',
    )


def check_metrics(
    names: Sequence[str], loss: LossFunction, measure: Measure, outputs: Tensors, targets: Tensors
) -> None:
    """Try on the example the metrics that have a name. Raises JobError."""
    for name in names:
        if ":" in name:
            continue
        metric = make_metric(name, loss, measure, {})
        if isinstance(metric, Errors) and outputs[0].shape != targets[0].shape:
            raise JobError(
                f"the metric {name} compares the first output with the first target, whose shapes are "
                f"{list(outputs[0].shape)} and {list(targets[0].shape)}",
                hint="give the metric as a function of (outputs, targets)",
            )
        metric.add(outputs, targets)
        metric.value()
