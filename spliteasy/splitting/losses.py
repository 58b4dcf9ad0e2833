"""Trace a user's loss into the same portable form: a graph of (outputs, targets) that gives one number.

A loss that is a module may have parameters of its own. They are trained in the tail, which gives them to
the loss behind the model's outputs, under names that begin with `loss.`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spliteasy.errors import DataError, JobError, PortableError
from spliteasy.graph.document import Document, ValueSpec, misfit
from spliteasy.graph.lengths import FreeLength
from spliteasy.graph.program import Batches, Costs
from spliteasy.graph.segment import Segment, load_segment
from spliteasy.splitting.boundaries import Partition
from spliteasy.splitting.export import trace_inputs
from spliteasy.splitting.split import assemble
from spliteasy.splitting.trace import TensorInfo


class PortableLoss:
    """A loss that travels: `loss(outputs, targets)` gives a scalar tensor. Stateless, shared by threads.

    `own`: the parameters of the loss as it was traced. A call takes them behind the outputs.
    """

    def __init__(self, segment: Segment, own: Sequence[TensorInfo] = ()) -> None:
        """Raises `PortableError` if the graph does not give one number of a floating dtype."""
        outputs = segment.output_values
        if len(outputs) != 1 or outputs[0].dtype is None or outputs[0].shape:
            raise PortableError("a loss must give one scalar tensor")
        if any(True for _ in segment.parameters()):
            raise PortableError("a loss has no parameters")
        if segment.stateful:
            raise PortableError("a loss must not change its own tensors")
        self.own = tuple(own)
        self._segment = segment
        self._tensors = tuple(segment.tensors().values())

    @property
    def input_values(self) -> tuple[ValueSpec, ...]:
        """The model's outputs, then the loss's own parameters, then the targets."""
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

    def of_model(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The loss of the model's outputs, with its own parameters as they were traced."""
        return self((*outputs, *(info.tensor for info in self.own)), targets)

    @property
    def costs(self) -> Costs:
        """The memory that the loss of a batch takes, as far as it was checked at the job's batches."""
        return self._segment.program.costs

    @property
    def document(self) -> Document:
        """The graph; its tensors are `tensors`, in order."""
        return self._segment.program.document

    def graph_json(self) -> bytes:
        """Return the graph, canonical."""
        return self._segment.graph_json()

    def tensors(self) -> dict[str, Tensor]:
        """Constants of the loss, such as class weights."""
        return self._segment.tensors()


def trace_function(
    fn: Callable[..., Tensor],
    example_outputs: tuple[Tensor, ...],
    example_targets: tuple[Tensor, ...],
    *,
    free: FreeLength | None = None,
) -> PortableLoss:
    """Trace `fn(outputs, targets)`; where there is one output or one target, `fn` gets that tensor itself.

    The batch (first) dimension stays free, and the length where `free` says so of the outputs, then the
    targets. Raises `JobError` if `fn` can't be traced, has no portable
    form, or does not give one scalar.
    """
    wrapped = _Wrapped(fn, len(example_outputs)).train()
    given = (*example_outputs, *example_targets)
    trace = trace_inputs(wrapped, given, "train", "loss", free=free)
    if len(trace.outputs) != 1 or trace.outputs[0].value.dim():
        raise JobError("a loss must give one scalar tensor", hint="reduce it over the batch, by mean or sum")
    if any(op.random for op in trace.ops):
        raise JobError("the loss draws random numbers", hint="draw them in the model, which returns them")
    own = {op: info for op, info in trace.tensors.items() if info.kind == "parameter"}
    part = Partition(trace, ()).parts[0]
    count = len(example_outputs)
    part.inputs = [*part.inputs[:count], *own, *part.inputs[count:]]
    part.tensors -= own.keys()
    try:
        constants = [info for op, info in trace.tensors.items() if op not in own]
        segment = assemble("loss", part, part, constants, longest=free.longest if free else 0)
        return PortableLoss(segment, list(own.values()))
    except PortableError as error:
        raise JobError(error.message, hint=error.hint) from None


def load_function(
    graph: bytes, tensors: Mapping[str, Tensor], device: str = "cpu", *, batches: Batches | None = None
) -> PortableLoss:
    """Build a loss from what travelled. It is checked at the `batches` that it will be computed at.

    Raises `PortableError`, as `load_segment` does, and where evaluation would have another loss than
    training: `PortableLoss` runs one graph for both.
    """
    segment = load_segment(graph, tensors, device, batches=batches).train()
    if segment.program.document.train != segment.program.document.eval:
        raise PortableError("a loss has one graph for training and evaluation")
    return PortableLoss(segment)


class _Wrapped(nn.Module):
    def __init__(self, fn: Callable[..., Tensor], outputs: int) -> None:
        super().__init__()
        self.loss, self._count = fn, outputs  # a module gives its parameters the names loss.<name>

    def forward(self, *values: Tensor) -> Any:
        outputs, targets = values[: self._count], values[self._count :]
        result = self.loss(*(group[0] if len(group) == 1 else group for group in (outputs, targets)))
        if not isinstance(result, torch.Tensor):
            raise JobError(f"the loss gives a {type(result).__name__}, not a tensor")
        return result
