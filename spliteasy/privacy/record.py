"""A recorded training: what an adversary holds (`View`), and what only the scoring knows (`Truth`).

Tensors are as they were decoded from the wire, batch first. Nothing here knows of brokers or stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from spliteasy.job import Job
from spliteasy.training.segment_trainer import Gradients, Values, tensors_of

Tensors = tuple[Tensor, ...]
Purpose = Literal["evaluation", "prediction"]
"""Test data that is scored while a job trains, or samples that the trained model is asked about."""


class Adversary(StrEnum):
    """The adversary that looks."""

    WORKER = "worker"
    """An honest but curious worker: the job package and every message."""
    ACTIVE = "active"
    """A worker that answers with gradients of its own making."""
    STORE = "store"
    """A reader of the store: the job package and the log of FORWARD and BACKWARD, nothing of evaluations."""
    MEMBER = "member"
    """Another device of the same job."""
    HOLDER = "holder"
    """A worker that also holds the released model."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Exchange:
    """The four tensors (or tuples of them) of one micro-batch of a step, each value as it was decoded."""

    samples: int
    share: float
    """The weight of the micro-batch's loss in the batch's."""
    activations: Values
    """a: from the head to the body."""
    outputs: Values
    """b: from the body to the tail; empty where the worker computes the loss."""
    output_gradients: Gradients
    """gb: the gradients of b; empty where the worker computes the loss."""
    gradients: Gradients
    """ga: the gradients of a."""


Step = tuple[Exchange, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Evaluated:
    """One batch of samples in evaluation mode, after `step`."""

    step: int
    purpose: Purpose = "evaluation"
    activations: Values
    outputs: Values


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Released:
    """The released model: the state of each segment by name, as `state_dict` gives it."""

    head: Mapping[str, Tensor]
    body: Mapping[str, Tensor]
    tail: Mapping[str, Tensor] | None


class Hijacker(Protocol):
    """An active worker's mind: it replaces the gradients that a device gets."""

    def gradients(self, activations: Values, honest: Gradients) -> Gradients:
        """The gradients to answer the activations with; each of the shape and dtype of its activation."""
        ...

    def reconstruct(self, activations: Values) -> Tensor:
        """The inputs that the activations came from, as the hijacker sees them now."""
        ...


@dataclass(frozen=True, kw_only=True, repr=False)
class View:
    """The view of one adversary after a training: all that it holds."""

    adversary: Adversary
    job: Job
    """The job package, as any worker gets it. Where devices draw weights, the adversary has drawn its own."""
    device: str
    """The device's name, which is in every message."""
    steps: tuple[Step, ...]
    """Step k is at k − 1."""
    evaluations: tuple[Evaluated, ...] = ()
    """Evaluations while it trained, and predictions behind them."""
    steps_per_epoch: int
    auxiliary: tuple[Tensors, Tensors] | None = None
    """(inputs, targets) of the same kind as the device's, but of none of its samples: public data."""
    known: Mapping[int, int] | None = None
    """A few labels of the last epoch that are known anyway: row number to label."""
    released: Released | None = None
    candidates: Tensors = ()
    """Inputs of which the adversary wants to know whether the device trained on them."""
    candidate_targets: Tensors = ()
    hijacker: Hijacker | None = None

    @property
    def classes(self) -> int | None:
        """The number of classes, where the job's loss is over class numbers, one for each sample."""
        return classes_of(self.job)

    @property
    def first_epoch(self) -> range:
        """Step indexes of the first epoch."""
        return range(min(self.steps_per_epoch, len(self.steps)))

    @property
    def last_epoch(self) -> range:
        """Step indexes of the newest whole epoch, or of all steps where there is none."""
        whole = len(self.steps) // self.steps_per_epoch
        if whole == 0:
            return range(len(self.steps))
        return range((whole - 1) * self.steps_per_epoch, whole * self.steps_per_epoch)

    def activations(self, steps: range) -> Tensor:
        """The activations of these steps, a row for each sample: float32 [samples, features]."""
        return torch.cat([rows_of(e.activations, e.samples) for i in steps for e in self.steps[i]])

    def outputs(self, steps: range) -> Tensor:
        """The body's outputs, likewise."""
        return torch.cat([rows_of(e.outputs, e.samples) for i in steps for e in self.steps[i]])

    def output_gradients(self, steps: range) -> Tensor:
        """The gradients of the body's outputs, likewise, each times the batch it was a mean over."""
        return torch.cat(
            [
                rows_of(e.output_gradients, e.samples) * (e.samples / e.share)
                for i in steps
                for e in self.steps[i]
            ]
        )

    def gradients(self, steps: range) -> Tensor:
        """The gradients of the activations, likewise."""
        return torch.cat(
            [rows_of(e.gradients, e.samples) * (e.samples / e.share) for i in steps for e in self.steps[i]]
        )

    @cached_property
    def silent_tail(self) -> bool:
        """Return whether values that skip over the body stay on the device: the tail needs what was never
        sent."""
        if self.job.tail is None or not self.steps:
            return False
        return len(self.job.tail.input_values) > len(self.steps[0][0].outputs)


@dataclass(frozen=True, kw_only=True, repr=False)
class Truth:
    """The device's private side of the recorded training. Attacks never see it; scores are made with it."""

    inputs: tuple[Tensors, ...]
    """The inputs of each step, as the head got them (augmented)."""
    targets: tuple[Tensors, ...]
    indices: tuple[tuple[int, ...], ...]
    """The samples that each step had, by index."""
    canaries: frozenset[int]
    """Samples whose label was drawn at random, so that nothing but a leak tells it."""
    members: int
    """The first so many of the view's candidates were trained on, the others not."""
    evaluated: Truth | None = None
    """The same of the recorded batches of evaluations and predictions, in place of steps."""

    def labels(self, steps: range) -> Tensor:
        """The class of every sample of these steps: int64 [samples]."""
        return torch.cat([self.targets[i][0].reshape(-1) for i in steps])

    def samples(self, steps: range) -> Tensor:
        """The sample numbers of these steps: int64 [samples]."""
        return torch.tensor([n for i in steps for n in self.indices[i]])

    def first_inputs(self, steps: range) -> Tensor:
        """The first input of every sample of these steps."""
        return torch.cat([self.inputs[i][0] for i in steps])


def classes_of(job: Job) -> int | None:
    """The classes of a job with one class number a sample; None for any other job."""
    from spliteasy.training.losses import CLASS_LOSSES

    signature = job.signature
    if job.spec.loss.name not in CLASS_LOSSES or len(signature.targets) != 1 or signature.targets[0].shape:
        return None
    shape = signature.outputs[0].shape
    return shape[0] if len(shape) == 1 else None


def rows_of(values: Sequence[object], samples: int) -> Tensor:
    """All floating values of a cut side by side, a row for each sample: float32 [samples, features].

    Values whose elements do not divide among the samples are left out.
    """
    found = [
        value.detach().float().reshape(samples, -1)
        for value in tensors_of([v for v in values if isinstance(v, Tensor)])
        if value.is_floating_point() and value.dim() and value.shape[0] % samples == 0
    ]
    return torch.cat(found, dim=1) if found else torch.zeros(samples, 0)
