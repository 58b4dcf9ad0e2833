"""Randomized response on class labels: differential privacy of each label, by a theorem.

A label of K classes is kept with probability e^ε / (e^ε + K − 1), and otherwise becomes one of the other
classes, each alike. The answer is drawn once for each sample: drawn again in each epoch, T epochs would cost
T·ε. Whatever is computed from such labels, by whom and with whatever else, tells the true one with that
probability at most, where nothing but the label tells it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from spliteasy.errors import DataError, JobError
from spliteasy.job.io_schema import Signature
from spliteasy.job.spec import JobSpec
from spliteasy.runtime.randomness import Key
from spliteasy.training.losses import CLASS_LOSSES

ADVERSARY = "anybody who sees what the device sends, its worker too, or has the trained model"


class RandomizedResponse:
    """The answers of one data set under one ε: the same in every training of it on this device."""

    def __init__(self, epsilon: float, classes: int, key: Key) -> None:
        """`key`: of this data set and this ε, and of no job: another would be another answer."""
        self._kept = keep_probability(epsilon, classes)
        self._classes = classes
        self._key = key

    def answer(self, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """The labels to train on in place of `labels`, which those samples have. Raises DataError."""
        answers = labels.clone()
        for row, index in enumerate(indices):
            label = int(labels[row])
            if not 0 <= label < self._classes:
                raise DataError(
                    f"sample {index}: label {label} is none of the {self._classes} classes, and label_dp has "
                    "no answer for it: the gradients would show that it is left out",
                    hint="leave the sample out where the data set makes it",
                )
            coin, other = self._draws(index)
            if coin >= self._kept:
                answers[row] = (label + 1 + int(other * (self._classes - 1))) % self._classes
        return answers

    def _draws(self, index: int) -> tuple[float, float]:
        """Two numbers from 0, below 1, of that sample."""
        words = self._key.at(index).stream(16)
        low, high = (int.from_bytes(words[at : at + 8], "little") >> 11 for at in (0, 8))
        return low * 2.0**-53, high * 2.0**-53


def keep_probability(epsilon: float, classes: int) -> float:
    """Return the probability that a label is kept, which bounds how many can be recovered."""
    return 1 / (1 + (classes - 1) * math.exp(-epsilon))


def classes_to_answer(spec: JobSpec, signature: Signature, defence: str = "label_dp") -> int:
    """The classes that a job's labels have. Raises JobError where `defence` can't answer for them."""

    def refused(why: str, hint: str) -> JobError:
        return JobError(f"[privacy] {defence} answers for class labels only: {why}", hint=hint)

    if spec.loss.name not in CLASS_LOSSES:
        raise refused("the loss does not say that targets are classes", "use loss cross_entropy or nll")
    (target, *more), output = signature.targets, signature.outputs[0]
    if more or target.dtype != "int64" or target.shape:
        raise refused(
            f"target {target.name!r} is not one class number a sample",
            "train on one int64 number for each sample",
        )
    if len(output.shape) != 1 or output.shape[0] < 2:
        raise refused("the model does not give a number for each of two classes or more", "mend its output")
    return output.shape[0]


def guarantee(epsilon: float, classes: int) -> str:
    """Say for a person what `label_dp` promises, and against whom."""
    return (
        f"label_dp: each training label is {epsilon:g}-differentially private (randomized response, drawn "
        f"once a sample) against {ADVERSARY}: a label that nothing else tells is recovered with probability "
        f"{keep_probability(epsilon, classes):.3f} at most ({1 / classes:.3f} by guessing)"
    )
