"""The sums of one evaluation: loss, accuracy and the job's metrics over the test samples so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

from torch import Tensor

from device_agent.training.samples import Tensors
from spliteasy.job import Job
from spliteasy.job.spec import LOSS
from spliteasy.training.metrics import Metric
from spliteasy.training.segment_trainer import all_finite


@dataclass(slots=True)
class Evaluation:
    """Sums over the test samples so far."""

    samples: int = 0
    loss: float = 0.0
    elements: float = 0.0
    """The elements that the loss's mean is over: labelled ones, or samples."""
    correct: int = 0
    counted: int = 0
    """Predictions that were right or wrong; 0 where the loss does not classify, or nothing has a label."""
    judged: bool = True
    """The predictions of every batch could be judged."""
    finite: bool = True
    """No output of any batch was NaN."""
    gathered: dict[str, Metric] = field(default_factory=dict)
    """The metrics that the job names."""

    def add(self, job: Job, outputs: Tensors, targets: Tensors) -> bool:
        """Add a batch of test samples; returns whether its loss is finite."""
        measure, finite_loss = job.measure, True
        elements = measure.elements(targets)
        self.samples += targets[0].shape[0]
        if elements:
            loss = float(job.loss(outputs, targets))
            finite_loss = isfinite(loss)
            self.elements += elements
            self.loss += loss * elements
        finite = all(map(has_no_nan, outputs))
        self.finite = self.finite and finite
        for name, metric in self.gathered.items() if finite else ():
            given = outputs[: len(job.signature.outputs)] if name in job.metric_functions else outputs
            metric.add(given, targets)
        right = measure.right(outputs, targets) if finite else None
        self.judged = self.judged and right is not None
        if right is not None:
            self.correct += right[0]
            self.counted += right[1]
        return finite_loss

    @property
    def mean_loss(self) -> float | None:
        """None where no element has a label."""
        return self.loss / self.elements if self.elements else None

    @property
    def accuracy(self) -> float | None:
        """None where it can't be measured."""
        return self.correct / self.counted if self.judged and self.counted else None

    def number(self, name: str) -> float | None:
        """The loss, or the metric of that name; None where it was not measured."""
        return self.mean_loss if name == LOSS else self.metrics[name]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The metrics that the job names; None where they can't be measured, as with NaN among outputs."""
        return {name: metric.value() if self.finite else None for name, metric in self.gathered.items()}


def has_no_nan(tensor: Tensor) -> bool:
    """Return whether no element is NaN."""
    return not tensor.is_floating_point() or all_finite([tensor]) or not bool(tensor.isnan().any())
