"""The step that a device has under way: its micro-batches, and how far each has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from device_agent.training.codec_policy import Values as Travelling
from device_agent.training.samples import Tensors
from spliteasy.codecs.packer import Packed
from spliteasy.training.segment_trainer import OpenForward


@dataclass(slots=True)
class MicroBatch:
    """A micro-batch of the open step."""

    inputs: Tensors
    targets: Tensors
    share: float
    """The weight of its loss in the batch's."""
    elements: float
    """The elements that the loss's mean over it is over: labelled ones, or samples."""
    head: OpenForward | None = None
    packed: Packed | None = None
    """The head's wire values, where they were packed ahead."""
    order: Tensor | None = None
    """The order in which its tokens cross, where it is not their own."""
    kept_gradients: tuple[Tensor | None, ...] = ()

    @property
    def samples(self) -> int:
        return self.inputs[0].shape[0]


@dataclass(slots=True)
class OpenStep:
    """An open step: its micro-batches go in order through head, tail and head backward."""

    micros: list[MicroBatch]
    heads: int = 0
    tails: int = 0
    returned: int = 0
    loss: float = 0.0
    losses: list[float] = field(default_factory=list)
    """The loss of each sample, under DP-SGD."""
    spoiled: str | None = None
    """The name of what is NaN or infinite, where the job lets the step pass without effect."""
    nbytes: dict[Travelling, int] = field(default_factory=dict)
    """The bytes of its first micro-batch's values, before they are packed."""

    @property
    def samples(self) -> int:
        return sum(micro.samples for micro in self.micros)

    @property
    def counted(self) -> float | None:
        """The elements that the loss's mean is over; None where none of them has a label."""
        return sum(micro.elements for micro in self.micros) or None
