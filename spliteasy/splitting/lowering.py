"""Write a part of a trace as a portable graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import (
    DTYPE_NAMES,
    INNER_DTYPE_NAMES,
    Dim,
    Graph,
    Node,
    Ref,
    TensorSpec,
    ValueSpec,
)
from spliteasy.graph.encoding import encode_argument
from spliteasy.splitting.boundaries import Part
from spliteasy.splitting.trace import Op, TensorInfo, dim_of, replaced


def lower(part: Part, table: Mapping[str, int]) -> Graph:
    """`table`: each tensor's number by main name. Raises `JobError` for shapes with no portable form."""
    slots: dict[Op, int] = {op: table[op.name] for op in part.tensors}
    slots |= {op: len(table) + place for place, op in enumerate(part.inputs)}
    first = len(table) + len(part.inputs)
    for place, op in enumerate(part.ops):
        slots[op] = first + place
    for known, stand_in in part.swaps.items():
        slots[known] = slots[stand_in]
    return Graph(
        inputs=tuple(value_spec(op) for op in part.inputs),
        nodes=tuple(_node(op, slots) for op in part.ops),
        results=tuple(slots[op] for op in part.outputs),
        outputs=tuple(value_spec(op) for op in part.outputs),
        wire=part.wire,
    )


def _node(op: Op, slots: Mapping[Op, int]) -> Node:
    def encoded(arg: Any) -> Any:
        return encode_argument(replaced(arg, lambda used: Ref(slots[used])))

    kwargs = {key: encoded(arg) for key, arg in op.kwargs.items()}
    return Node(op=op.target, args=tuple(encoded(arg) for arg in op.args), kwargs=kwargs, grad=op.grad)


def value_spec(op: Op) -> ValueSpec:
    """Return the specification of a value. Raises `JobError` if the value does not grow evenly with the
    batch and the length."""
    value = op.value
    sizes: Sequence[Any] = value.shape if isinstance(value, Tensor) else (value,)
    dims: list[Dim] = []
    for size in sizes:
        dim = dim_of(size)
        if dim is None:
            raise JobError(
                f"{op.name} has a size of {size}, which does not grow evenly with the batch and length"
            )
        dims.append(dim)
    if not isinstance(value, Tensor):
        return ValueSpec(name=op.name, dtype=None, shape=tuple(dims))
    if value.dtype not in DTYPE_NAMES:
        raise JobError(f"{op.name} is {value.dtype}, which can't travel")
    dtype: Any = DTYPE_NAMES[value.dtype]
    return ValueSpec(name=op.name, dtype=dtype, shape=tuple(dims), needs_grad=op.needs_grad)


def tensor_spec(info: TensorInfo) -> TensorSpec:
    """Return a tensor of the model as it is written in the table."""
    kind: Any = info.kind
    dtype: Any = INNER_DTYPE_NAMES.get(info.tensor.dtype)
    if dtype is None:
        raise JobError(f"tensor {info.names[0]} is {info.tensor.dtype}, which can't travel")
    return TensorSpec(
        names=info.names,
        kind=kind,
        dtype=dtype,
        shape=tuple(info.tensor.shape),
        requires_grad=info.tensor.requires_grad,
        persistent=info.persistent,
    )
