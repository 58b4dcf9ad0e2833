"""The interface of an attack, and what several attacks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from spliteasy.graph.segment import Segment
from spliteasy.privacy.guesses import Guess
from spliteasy.privacy.record import Adversary, Exchange, Tensors, View
from spliteasy.training.segment_trainer import Values, tensors_of

WIRE = frozenset({Adversary.WORKER, Adversary.STORE})
"""The adversaries that read what crosses the cut while the device trains."""


class Attack(Protocol):
    """One way to compute private data from a `View`."""

    @property
    def name(self) -> str:
        """The name as `--attack` takes it."""
        ...

    @property
    def adversaries(self) -> frozenset[Adversary]:
        """The adversaries that can play the attack."""
        ...

    @property
    def source(self) -> str:
        """The source of the idea."""
        ...

    def refuses(self, view: View) -> str | None:
        """Why it can't be tried on such a job; None where it can."""
        ...

    def run(self, view: View) -> Guess:
        """Attack, and return the score. The result is deterministic: all draws come from fixed seeds."""
        ...


def no_classes(view: View) -> str | None:
    """Why labels can't be attacked."""
    if view.classes is None:
        return "the targets are not one class number a sample"
    if view.job.tail is None:
        return "labels are shared (one cut)"
    return None


def no_floating_input(view: View) -> str | None:
    """Why the first input can't be reconstructed by descent."""
    if view.job.signature.inputs[0].dtype != "float32":
        return "the first input is not float32"
    return None


def no_auxiliary(view: View) -> str | None:
    """Why a decoder can't be trained."""
    if view.auxiliary is None:
        return "there is no auxiliary data of the same kind"
    return no_floating_input(view)


def believed_head(view: View) -> Segment:
    """The head as the adversary knows it: the released one, or the job package's with its first weights."""
    head = view.job.head.spawn()
    if view.released is not None:
        head.load_state_dict(view.released.head)
    return head


def crossing(head: Segment, inputs: Tensors) -> Values:
    """Return what the head sends for these inputs, in its present mode."""
    values: Values = head(*inputs)[: head.n_wire]
    return values


def mismatch(found: Values, wanted: Values) -> Tensor:
    """The squared error of activations, summed over values and features, a mean over samples."""
    total = torch.zeros(())
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point():
            total = total + (one - other).pow(2).sum() / max(1, other.shape[0])
    return total


def scale_of(wanted: Values) -> float:
    """The error of activations that are all zero: what errors are measured by."""
    nothing = tuple(torch.zeros_like(v) if isinstance(v, Tensor) else v for v in wanted)
    return max(float(mismatch(nothing, wanted)), 1e-12)


def unlike_public(inputs: Tensor, view: View) -> Tensor:
    """Return how far mean and spread of reconstructed inputs are from those of public data; zero without any.

    A batch norm in the head undoes scale and offset of a whole batch, so that activations leave both open.
    """
    if view.auxiliary is None:
        return torch.zeros(())
    public = view.auxiliary[0][0]
    return (inputs.mean() - public.mean()).pow(2) + (inputs.std() - public.std()).pow(2)


def made_up_inputs(view: View, samples: int) -> Tensors:
    """Inputs to begin a descent from: the mean of the auxiliary data if there is any, else zeros."""
    made = []
    for place, spec in enumerate(view.job.signature.inputs):
        dtype = getattr(torch, spec.dtype)
        start = torch.zeros(spec.shape, dtype=dtype)
        if view.auxiliary is not None and dtype.is_floating_point:
            start = view.auxiliary[0][place].mean(0)
        made.append(start.expand(samples, *spec.shape).clone())
    return tuple(made)


def smooth(images: Tensor) -> Tensor:
    """Total variation, a mean over elements; zero for what is no image."""
    if images.dim() != 4:
        return torch.zeros(())
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    right = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    return down + right


def exchanges(view: View, steps: range) -> Sequence[Exchange]:
    """All micro-batches of these steps, in order."""
    return [exchange for index in steps for exchange in view.steps[index]]


def first_tensor(values: Values) -> Tensor:
    """The first tensor that crosses."""
    return tensors_of(values)[0]
