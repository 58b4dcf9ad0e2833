"""A portable graph as a document: tensors, inputs, a straight line of operators, outputs.

Values are numbered: the tensors of the table first, then the inputs, then one per node; a reference
names a smaller number, so a graph has no cycles. A shape's dimension is a number, or grows with the
batch of B samples, and with their length L where that is free:
`batch * B + length * L + both * B * L + plus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from spliteasy.graph import limits

FORMAT: Literal["spliteasy-graph"] = "spliteasy-graph"
VERSION: Literal[1] = 1

Value: TypeAlias = Tensor | int
"""A value that crosses a cut: a tensor, or an integer such as a batch size that a later view needs."""

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
"""The kinds of numbers that cross a cut."""
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
INNER_DTYPES = DTYPES | {"complex64": torch.complex64, "complex128": torch.complex128}
"""Those that values and buffers within a segment have."""
INNER_DTYPE_NAMES = {dtype: name for name, dtype in INNER_DTYPES.items()}

DtypeName = Literal[
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]
Name = Annotated[str, Field(min_length=1, max_length=limits.TEXT)]
Size = Annotated[int, Field(ge=0, le=limits.ELEMENTS)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FreeDim(_Record):
    """A dimension of `batch * B + length * L + both * B * L + plus` at B samples of length L."""

    batch: Size = 0
    length: Size = 0
    both: Size = 0
    plus: Annotated[int, Field(ge=-limits.ELEMENTS, le=limits.ELEMENTS)] = 0

    @model_validator(mode="after")
    def _is_free(self) -> Self:
        if not (self.batch or self.length or self.both):
            raise ValueError("a dimension that grows with nothing is a number")
        return self

    def at(self, batch: int, length: int = 0) -> int:
        return self.batch * batch + self.length * length + self.both * batch * length + self.plus

    @property
    def per_batch(self) -> bool:
        return bool(self.batch or self.both)

    @property
    def per_length(self) -> bool:
        return bool(self.length or self.both)

    def batch_at(self, size: int, length: int | None) -> int | None:
        """The number of samples at which the dimension has that size; None where that can't be told."""
        if length is None and self.per_length:
            return None
        known = length or 0
        return _whole(size - self.plus - self.length * known, self.batch + self.both * known)

    def length_at(self, size: int, batch: int | None) -> int | None:
        """The length at which the dimension has that size; None where that can't be told."""
        if batch is None and self.per_batch:
            return None
        known = batch or 0
        return _whole(size - self.plus - self.batch * known, self.length + self.both * known)


def _whole(total: int, each: int) -> int | None:
    return total // each if each > 0 and total % each == 0 else None


Dim: TypeAlias = Size | FreeDim


class TensorSpec(_Record):
    """A tensor that a segment owns. `names`: all names the original model has for it, first the main one."""

    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=64)]
    kind: Literal["parameter", "buffer", "constant"]
    dtype: DtypeName | Literal["complex64", "complex128"]
    shape: Annotated[tuple[Size, ...], Field(max_length=limits.DIMENSIONS)]
    requires_grad: bool = False
    persistent: bool = True

    @property
    def name(self) -> str:
        return self.names[0]


class ValueSpec(_Record):
    """A value that enters or leaves a graph: a tensor of `dtype` and `shape`, or an integer.

    An integer has no dtype, and its value is the one entry of `shape`.
    """

    name: Name
    dtype: DtypeName | None
    shape: Annotated[tuple[Dim, ...], Field(max_length=limits.DIMENSIONS)] = ()
    needs_grad: bool = False

    @property
    def is_int(self) -> bool:
        return self.dtype is None

    @property
    def torch_dtype(self) -> torch.dtype:
        assert self.dtype is not None, "an integer has no dtype"
        return DTYPES[self.dtype]

    @property
    def per_batch(self) -> bool:
        """Return whether the value grows with the batch."""
        return any(isinstance(dim, FreeDim) and dim.per_batch for dim in self.shape)

    @property
    def per_length(self) -> bool:
        """Return whether the value grows with the length of the samples."""
        return any(isinstance(dim, FreeDim) and dim.per_length for dim in self.shape)

    def shape_for(self, batch: int, length: int = 0) -> tuple[int, ...]:
        """The shape at a batch of so many samples, padded to that length where lengths are free."""
        return tuple(dim.at(batch, length) if isinstance(dim, FreeDim) else dim for dim in self.shape)

    def value_for(self, batch: int, length: int = 0) -> int:
        """The value of an integer at a batch of so many samples of that length."""
        assert self.is_int, "a tensor has no single value"
        return self.shape_for(batch, length)[0] if self.shape else 0

    def bytes_for(self, batch: int, length: int = 0) -> int:
        """Bytes at a batch of so many samples of that length, nothing compressed."""
        if self.is_int:
            return 8
        size = self.torch_dtype.itemsize
        for dim in self.shape_for(batch, length):
            size *= dim
        return size

    def problem_with(self, value: object, batch: int, length: int = 0) -> str | None:
        """Say in one line what is wrong with `value` in this place, or None if it fits."""
        if self.is_int:
            expected = self.value_for(batch, length)
            fits = type(value) is int and value == expected
            return None if fits else f"{self.name}: expected the integer {expected}, got {value!s:.40}"
        if not isinstance(value, Tensor):
            return f"{self.name}: expected a tensor, got {type(value).__name__}"
        if value.dtype != self.torch_dtype:
            return f"{self.name}: expected {self.dtype}, got {str(value.dtype).removeprefix('torch.')}"
        if tuple(value.shape) != self.shape_for(batch, length):
            return f"{self.name}: expected shape {self.shape_for(batch, length)}, got {tuple(value.shape)}"
        return None


class Node(_Record):
    """One call. `args` hold numbers, texts, lists and tagged objects (`{"ref": 7}`, see `codec`)."""

    op: Name
    args: Annotated[tuple[Any, ...], Field(max_length=64)] = ()
    kwargs: Annotated[dict[Name, Any], Field(max_length=64)] = {}
    grad: bool = True


class Graph(_Record):
    """Inputs and outputs with what they are, and the nodes between. `results`: the outputs' numbers."""

    inputs: Annotated[tuple[ValueSpec, ...], Field(max_length=limits.VALUES)]
    nodes: Annotated[tuple[Node, ...], Field(max_length=limits.NODES)]
    results: Annotated[tuple[Size, ...], Field(max_length=limits.VALUES)]
    outputs: Annotated[tuple[ValueSpec, ...], Field(max_length=limits.VALUES)]
    wire: Size
    """This many outputs, counted from the first, go over the wire; the others stay where they are."""


class Document(_Record):
    """The JSON of one segment: the table of its tensors and a graph for each mode."""

    format: Literal["spliteasy-graph"] = FORMAT
    version: Literal[1] = VERSION
    name: Name
    tensors: Annotated[tuple[TensorSpec, ...], Field(max_length=limits.TENSORS)]
    train: Graph
    eval: Graph

    def graph(self, training: bool) -> Graph:
        return self.train if training else self.eval


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to the value of that number."""

    slot: int


def misfit(specs: Sequence[ValueSpec], values: Sequence[Value]) -> str | None:
    """Say what is wrong with the first value that does not fit its place at any batch size and length, or
    None if all fit."""
    batch, length = extent_of(specs, values)
    for spec, value in zip(specs, values, strict=False):
        if (batch is not None or not spec.per_batch) and (length is not None or not spec.per_length):
            problem = spec.problem_with(value, batch or 1, length or 0)
            if problem is not None:
                return problem
    return None


def extent_of(specs: Sequence[ValueSpec], values: Sequence[Value]) -> tuple[int | None, int | None]:
    """The batch size and the length of the samples, by the first value that shows each; None if none does."""
    shown = [
        (dim, value.shape[place])
        for spec, value in zip(specs, values, strict=False)
        if isinstance(value, Tensor) and value.dim() == len(spec.shape)
        for place, dim in enumerate(spec.shape)
        if isinstance(dim, FreeDim)
    ]
    batch: int | None = None
    length: int | None = None
    for _ in range(2):  # a dimension of both shows one of them once the other is known
        for dim, size in shown:
            batch = dim.batch_at(size, length) if batch is None else batch
            length = dim.length_at(size, batch) if length is None else length
    return batch, length
