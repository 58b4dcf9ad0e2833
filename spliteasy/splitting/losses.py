"""Trace a user's loss into the same portable form: a graph of (outputs, targets) that gives one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spliteasy.errors import DataError, JobError, PortableError
from spliteasy.graph.document import Document, ValueSpec, misfit
from spliteasy.graph.segment import Segment, load_segment
from spliteasy.splitting.boundaries import Partition
from spliteasy.splitting.export import trace_inputs
from spliteasy.splitting.split import assemble


class PortableLoss:
    """A loss that travels: `loss(outputs, targets)` gives a scalar tensor. Stateless, shared by threads."""

    def __init__(self, segment: Segment) -> None:
        """Raises `PortableError` if the graph does not give one number of a floating dtype."""
        outputs = segment.output_values
        if len(outputs) != 1 or outputs[0].dtype is None or outputs[0].shape:
            raise PortableError("a loss must give one scalar tensor")
        if any(True for _ in segment.parameters()):
            raise PortableError("a loss has no parameters")
        self._segment = segment
        self._tensors = tuple(segment.tensors().values())

    @property
    def input_values(self) -> tuple[ValueSpec, ...]:
        """The model's outputs, then the targets."""
        return self._segment.input_values

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The loss of a batch. Raises `DataError` for other dtypes or sizes than were traced."""
        values = (*outputs, *targets)
        problem = misfit(self.input_values, values)
        if problem is not None:
            raise DataError(f"the loss takes other outputs and targets: {problem}")
        (loss,) = self._segment.program(self._tensors, values, training=True)
        assert isinstance(loss, Tensor), "checked when loaded"
        return loss

    @property
    def document(self) -> Document:
        """The graph; its tensors are `tensors`, in order."""
        return self._segment.program.document

    def graph_json(self) -> bytes:
        """The graph, canonical."""
        return self._segment.graph_json()

    def tensors(self) -> dict[str, Tensor]:
        """Constants of the loss, such as class weights."""
        return self._segment.tensors()


def trace_function(
    fn: Callable[..., Tensor], example_outputs: tuple[Tensor, ...], example_targets: tuple[Tensor, ...]
) -> PortableLoss:
    """Trace `fn(outputs, targets)`; where there is one output or one target, `fn` gets that tensor itself.

    The batch (first) dimension stays free. Raises `JobError` if `fn` can't be traced, has no portable
    form, or does not give one scalar.
    """
    wrapped = _Wrapped(fn, len(example_outputs)).train()
    trace = trace_inputs(wrapped, (*example_outputs, *example_targets), "train", "loss")
    if len(trace.outputs) != 1 or trace.outputs[0].value.dim():
        raise JobError("a loss must give one scalar tensor", hint="reduce it over the batch, by mean or sum")
    if any(op.random for op in trace.ops):
        raise JobError("the loss draws random numbers", hint="draw them in the model, which returns them")
    whole = Partition(trace, ())
    return PortableLoss(assemble("loss", whole.parts[0], whole.parts[0], list(trace.tensors.values())))


def load_function(graph: bytes, tensors: Mapping[str, Tensor], device: str = "cpu") -> PortableLoss:
    """Build a loss from what travelled. Raises `PortableError`, as `load_segment` does."""
    return PortableLoss(load_segment(graph, tensors, device).train())


class _Wrapped(nn.Module):
    def __init__(self, fn: Callable[..., Tensor], outputs: int) -> None:
        super().__init__()
        self._fn, self._count = fn, outputs

    def forward(self, *values: Tensor) -> Any:
        outputs, targets = values[: self._count], values[self._count :]
        result = self._fn(*(group[0] if len(group) == 1 else group for group in (outputs, targets)))
        if not isinstance(result, torch.Tensor):
            raise JobError(f"the loss gives a {type(result).__name__}, not a tensor")
        return result
