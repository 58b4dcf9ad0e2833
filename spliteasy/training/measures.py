"""The counts beside a loss: the elements that its mean is over, and the predictions that are right.

A classifying loss leaves out ignored labels (`ignore_index`) and weighs classes, so that its mean over a
batch is not the mean over samples. Both counts come from what the loss itself compares: for a loss by
name that is known, for a function of the user's it is read from the traced graph. Where the graph does
not show it, nothing is counted, and the accuracy is not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from spliteasy.errors import DataError
from spliteasy.job.micro_batches import share_of
from spliteasy.training.losses import CLASS_LOSSES, IGNORED_CLASS

Tensors = tuple[Tensor, ...]
LARGEST_CLASS_WEIGHT_ERROR = 1e-6
"""Two shares of a batch may differ by this, relatively, and still count as the same."""


@dataclass(frozen=True, slots=True)
class Classes:
    """Scores [B, C, ...] against class numbers [B, ...], or against a probability of each class."""

    scores: Callable[[Tensors, Tensors], Tensor]
    labels: Callable[[Tensors], Tensor]
    ignored: int = IGNORED_CLASS
    weights: Tensor | None = None
    """One a class, shape [C]."""
    mean: bool = True
    """The loss is the mean over the labelled elements; without it, their sum."""

    def elements(self, targets: Tensors) -> float | None:
        """Return the divisor of the mean, or None where that is the number of samples."""
        labels = self.labels(targets)
        if not self.mean or labels.is_floating_point():
            return None
        kept = labels[labels != self.ignored]
        return float(kept.numel() if self.weights is None else self.weights[kept].double().sum())

    def judged(self, outputs: Tensors, targets: Tensors) -> tuple[Tensor, Tensor]:
        """The scores [N, C] of all elements that have a label, and their classes [N]."""
        scores, labels = self.scores(outputs, targets).detach(), self.labels(targets)
        classes = 0 if scores.dim() == 1 else 1
        if labels.is_floating_point():
            labels = labels.argmax(dim=classes)
        labels = labels.reshape(-1)
        labelled = labels != self.ignored
        rows = scores.movedim(classes, -1).reshape(-1, scores.shape[classes])
        return rows[labelled], labels[labelled]

    def right(self, outputs: Tensors, targets: Tensors) -> tuple[int, int]:
        """Predictions that are right, and predictions that have a label."""
        scores, labels = self.scores(outputs, targets), self.labels(targets)
        classes = 0 if scores.dim() == 1 else 1
        guess = scores.argmax(dim=classes)
        if labels.is_floating_point():
            labels = labels.argmax(dim=classes)
            return int((guess == labels).sum()), guess.numel()
        labelled = labels != self.ignored
        return int((guess[labelled] == labels[labelled]).sum()), int(labelled.sum())


@dataclass(frozen=True, slots=True)
class YesNo:
    """One score for each question against 0 or 1; a score above `threshold` says yes."""

    scores: Callable[[Tensors, Tensors], Tensor]
    labels: Callable[[Tensors], Tensor]
    threshold: float = 0.0

    def judged(self, outputs: Tensors, targets: Tensors) -> tuple[Tensor, Tensor]:
        """The scores [N] of all answers, and 1 where each ought to be yes, else 0 [N]."""
        scores, labels = self.scores(outputs, targets).detach(), self.labels(targets)
        return scores.reshape(-1), (labels > 0.5).long().reshape(-1)

    def right(self, outputs: Tensors, targets: Tensors) -> tuple[int, int] | None:
        """Answers that are right, and answers; None where a target is neither yes nor no."""
        labels = self.labels(targets)
        if not bool(((labels == 0) | (labels == 1)).all()):
            return None
        said = self.scores(outputs, targets) > self.threshold
        return int((said == (labels == 1)).sum()), labels.numel()


@dataclass(frozen=True, slots=True)
class Measure:
    """The counts for one job's loss."""

    predictions: Classes | YesNo | None = None
    """The accuracy is read from these. None says that it is not measured."""
    means: tuple[Classes, ...] = ()
    """The classifying terms of the loss that are means over labelled elements."""
    proportional: bool = True
    """The loss is one of `means` times a constant, so that its elements weigh micro-batches."""
    opaque: bool = False
    """The loss has a mean over labelled elements that can't be read from the targets alone."""

    def elements(self, targets: Tensors) -> float:
        """Return the weight of the loss's mean over these targets: its labelled elements, or else its
        samples."""
        found = self.means[0].elements(targets) if self.means and self.proportional else None
        return float(targets[0].shape[0]) if found is None else found

    def shares(self, parts: Sequence[Tensors]) -> list[float]:
        """Return the share of each micro-batch, given by its targets, in the loss of the whole batch.

        0 where it has no labelled element. A batch without any is shared by samples: its loss is no number.
        Raises DataError where the loss has several terms whose means count differently, so that no one share
        is right.
        """
        counts = [self.elements(part) for part in parts]
        samples = [float(part[0].shape[0]) for part in parts]
        shares = _parts_of_one(counts if sum(counts) else samples)
        if not self.proportional:
            self._check_terms(parts, shares)
        return shares

    def measured(self, targets: Tensors) -> bool:
        """Return whether a loss over these targets is a number: whether any element has a label."""
        return self.elements(targets) > 0

    def right(self, outputs: Tensors, targets: Tensors) -> tuple[int, int] | None:
        """(right, counted) of the predictions; None where the accuracy can't be measured."""
        return None if self.predictions is None else self.predictions.right(outputs, targets)

    def _check_terms(self, parts: Sequence[Tensors], shares: Sequence[float]) -> None:
        for mean in self.means:
            counts = [mean.elements(part) for part in parts]
            if any(count is None for count in counts):
                continue
            own = _parts_of_one([count or 0.0 for count in counts])
            if any(abs(a - b) > LARGEST_CLASS_WEIGHT_ERROR for a, b in zip(own, shares, strict=True)):
                raise DataError(
                    "the loss has several terms, and one of them is a mean over labelled elements, which the "
                    "micro-batches of this batch have unequally many of",
                    hint="set micro_batches = 1, or make the loss one cross-entropy or NLL term",
                )


def _parts_of_one(counts: Sequence[float]) -> list[float]:
    whole = sum(counts)
    return [share_of(count, whole) if whole else 0.0 for count in counts]


def named_measure(name: str) -> Measure:
    """Return what is counted for a loss by name."""
    if name in CLASS_LOSSES:
        classes = Classes(_first_output, _first_target)
        return Measure(classes, (classes,))
    if name == "bce_with_logits":
        return Measure(YesNo(_first_output, _first_target))
    return Measure()


def _first_output(outputs: Tensors, _targets: Tensors) -> Tensor:
    return outputs[0]


def _first_target(targets: Tensors) -> Tensor:
    return targets[0]
