"""A segment: a program, shared and stateless, with tensors of its own, as an `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spliteasy.errors import DataError, PortableError
from spliteasy.graph.checker import check_program
from spliteasy.graph.document import INNER_DTYPES, TensorSpec, Value, ValueSpec, misfit
from spliteasy.graph.encoding import document_from_json, document_to_json
from spliteasy.graph.program import Batches, Program
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes


@dataclass(frozen=True, slots=True)
class Frozen:
    """A tensor that segments share, and the digest of its bits."""

    tensor: Tensor
    digest: str


def storage_of(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, which all views of it have in common."""
    return tensor.untyped_storage().data_ptr()


class Segment(nn.Module):
    """A part of a model: takes and returns flat tuples of tensors and integers.

    Parameters and buffers carry the original model's dotted names, so `state_dict()` keys are its
    keys. `.train()` and `.eval()` choose between the two graphs. Running statistics change in place
    on the segment's own buffers. The caller chooses gradients on or off (`torch.no_grad`). A backward
    puts the gradient of an input that is a leaf into its `.grad`, with the strides it had in the flow.
    """

    def __init__(
        self, program: Program, tensors: Mapping[str, Tensor], frozen: Mapping[str, Frozen] | None = None
    ) -> None:
        """`tensors`: by main name, one for each in the program's table; taken over, not copied.

        `frozen`: the rest of them, which other segments hold too. Raises `PortableError` if one is missing,
        unknown, or of another shape or dtype.
        """
        super().__init__()
        self._program = program
        self.frozen: dict[str, Frozen] = dict(frozen or {})
        """The tensors that this segment shares with others, by main name: nothing writes into them."""
        self._frozen_at = {storage_of(each.tensor) for each in self.frozen.values() if each.tensor.numel()}
        tensors = {**tensors, **{name: each.tensor for name, each in self.frozen.items()}}
        table = program.document.tensors
        unknown = tensors.keys() - {spec.name for spec in table}
        if unknown:
            raise PortableError(f"segment {self.name!r} has no tensor named {min(unknown)[:80]!r}")
        self._slots: list[tuple[dict[str, Any], str]] = []
        for spec in table:
            if spec.name not in tensors:
                raise PortableError(f"tensor {spec.name!r} of segment {self.name!r} is missing")
            self._adopt(spec, _fitting(spec, tensors[spec.name]))

    def _adopt(self, spec: TensorSpec, tensor: Tensor) -> None:
        """Register under all names, straight into the dictionaries: a user's module may be called `name`."""
        parameter = (
            nn.Parameter(tensor, requires_grad=spec.requires_grad) if spec.kind == "parameter" else None
        )
        for place, name in enumerate(spec.names):
            *path, leaf = name.split(".")
            owner: nn.Module = self
            for part in path:
                owner = owner._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
            if parameter is not None:
                slot: tuple[dict[str, Any], str] = (owner._parameters, leaf)
                owner._parameters[leaf] = parameter
            else:
                slot = (owner._buffers, leaf)
                owner._buffers[leaf] = tensor
                if not spec.persistent:
                    owner._non_persistent_buffers_set.add(leaf)
            if place == 0:
                self._slots.append(slot)

    def forward(self, *inputs: Value) -> tuple[Value, ...]:
        """Run the graph of the present mode: first the `n_wire` values for the wire, then those that stay.

        Raises `DataError` for inputs of other dtypes or sizes than were traced; only the batch is free.
        """
        problem = misfit(self.input_values, inputs)
        if problem is not None:
            raise DataError(
                f"{self.name}: {problem}",
                hint="only the batch size is free: bring samples to the sizes that the model was traced with",
            )
        tensors = [owner[leaf] for owner, leaf in self._slots]
        given = [_delivering(value) for value in inputs]
        return self._program(tensors, given, training=self.training, frozen=self._frozen_at)

    @property
    def program(self) -> Program:
        return self._program

    @property
    def name(self) -> str:
        return self._program.document.name

    @property
    def input_values(self) -> tuple[ValueSpec, ...]:
        """The values that `forward` takes in the present mode."""
        return self._program.document.graph(self.training).inputs

    @property
    def output_values(self) -> tuple[ValueSpec, ...]:
        """The values that `forward` returns in the present mode."""
        return self._program.document.graph(self.training).outputs

    @property
    def n_wire(self) -> int:
        """The number of outputs, counted from the first, that go over the wire in the present mode."""
        return self._program.document.graph(self.training).wire

    @property
    def has_random(self) -> bool:
        """Return whether the training graph draws random numbers."""
        return self._program.train.random

    @property
    def stateful(self) -> bool:
        """Return whether the training graph may change the segment's own tensors, as running
        statistics do."""
        return self._program.train.stateful

    @property
    def has_random_eval(self) -> bool:
        """Return whether the evaluation graph draws random numbers."""
        return self._program.eval.random

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by main name, also those that a state dict leaves out. Not copies."""
        table = self._program.document.tensors
        return {spec.name: owner[leaf] for spec, (owner, leaf) in zip(table, self._slots, strict=True)}

    def spawn(self, tensors: Mapping[str, Tensor] | None = None) -> Segment:
        """Return an independent segment on the same program, in the same mode.

        Its tensors are copies of `tensors` where given (by main name), else of this segment's; what is
        `frozen` here is shared instead. Frozen parameters stay frozen. Raises `PortableError` for unknown
        names, shapes and dtypes.
        """
        given = tensors or {}
        frozen = {name: each for name, each in self.frozen.items() if name not in given}
        chosen = {**self.tensors(), **given}
        copies = {name: _copy(tensor) for name, tensor in chosen.items() if name not in frozen}
        return Segment(self._program, copies, frozen).train(self.training)

    @property
    def processor(self) -> torch.device:
        """The processor that the segment's tensors lie on, and that computes it."""
        return torch.device(self._program.device)

    def on(self, processor: torch.device) -> Segment:
        """Return the segment on that processor, in the same mode: itself where it is there, else a copy that
        shares nothing."""
        if processor == self.processor:
            return self
        tensors = {name: tensor.detach().to(processor) for name, tensor in self.tensors().items()}
        return Segment(self._program.on(str(processor)), tensors).train(self.training)

    def with_frozen(self, frozen: Mapping[str, Frozen]) -> Segment:
        """Return the same segment with those tensors in the place of its own; the others are not copied."""
        own = {name: tensor.detach() for name, tensor in self.tensors().items() if name not in frozen}
        return Segment(self._program, own, frozen).train(self.training)

    def unshare(self, name: str) -> None:
        """Give the segment a copy of a frozen tensor for itself."""
        tensor = _copy(self.frozen.pop(name).tensor)
        self._frozen_at = {storage_of(each.tensor) for each in self.frozen.values() if each.tensor.numel()}
        spec = next(spec for spec in self._program.document.tensors if spec.name == name)
        if spec.kind == "parameter":
            self.get_parameter(name).data = tensor  # the object stays, under all of its names
            return
        for path, _, leaf in (each.rpartition(".") for each in spec.names):
            self.get_submodule(path)._buffers[leaf] = tensor

    def frozen_names(self) -> frozenset[str]:
        """Return all names of the frozen tensors: one may have several."""
        table = self._program.document.tensors
        return frozenset(name for spec in table if spec.name in self.frozen for name in spec.names)

    def graph_json(self) -> bytes:
        """Both graphs, canonical: the same segment gives the same bytes."""
        return document_to_json(self._program.document)

    def tensors_bytes(self) -> bytes:
        """All tensors as safetensors."""
        return segment_tensors_bytes(self)

    def extra_repr(self) -> str:
        graph = self._program.document.graph(self.training)
        return f"{self.name}: {len(graph.nodes)} operators, {len(graph.inputs)} in, {len(graph.outputs)} out"


class _Deliver(torch.autograd.Function):
    """Puts a gradient into its leaf's `.grad` as it comes.

    Autograd's own accumulation copies it to the leaf's strides; what the plain model sums next (a
    bias gradient, say) would then add in another order, and differ in the last bits.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor) -> Tensor:
        ctx.leaf = leaf
        return leaf.view_as(leaf)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        (gradient,) = gradients
        leaf = ctx.leaf
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _delivering(value: Value) -> Value:
    if isinstance(value, Tensor) and value.is_leaf and value.requires_grad and torch.is_grad_enabled():
        delivered: Tensor = _Deliver.apply(value)  # type: ignore[no-untyped-call]
        return delivered
    return value


class Taken(dict[str, Tensor]):
    """Tensors that are given away: each goes as it is copied, so that a large one is not in memory twice."""


def load_segment(
    graph: bytes, tensors: Mapping[str, Tensor], device: str = "cpu", *, batches: Batches | None = None
) -> Segment:
    """Build a segment from what travelled; the tensors are copied to `device`.

    It is checked at the `batches` that it will be run at, and what that takes is in `program.costs`.
    A tensor on the meta device is a shape without values, which `spawn` is given later.

    Raises `PortableError` for a graph that is malformed, too large, or calls what is not allowed, and
    for tensors that do not fit it. Nothing of the graph runs on data.
    """
    program = Program(document_from_json(graph), device)
    program.costs = check_program(program, batches)
    copies = {}
    for name in list(tensors):
        tensor = tensors.pop(name) if isinstance(tensors, Taken) else tensors[name]
        copies[name] = tensor if tensor.is_meta else _copy(tensor).to(device)
        del tensor
    return Segment(program, copies)


def segment_tensors_bytes(segment: Segment) -> bytes:
    """All tensors of a segment as safetensors bytes, dimension order kept."""
    return tensors_to_bytes(segment.tensors())


def load_segment_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of such a file. Raises `PortableError` for bytes that are not safetensors."""
    return tensors_from_bytes(data)


def _fitting(spec: TensorSpec, tensor: Tensor) -> Tensor:
    if tensor.dtype != INNER_DTYPES[spec.dtype] or tuple(tensor.shape) != spec.shape:
        raise PortableError(
            f"tensor {spec.name!r} is {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)},"
            f" the graph says {spec.dtype} {spec.shape}"
        )
    return tensor


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.preserve_format)
