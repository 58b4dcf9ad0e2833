"""A traced model: a straight line of operators on values of known shape, dtype and need of gradient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spliteasy.graph.document import Dim, FreeDim
from spliteasy.graph.operators import COPIES, VIEWS, is_in_place, is_random, uses_statistics

ModuleCall: TypeAlias = tuple[str, int]
"""A module's path, and which of its calls: from 1."""

INPUT, TENSOR = "input", "tensor"


@dataclass(eq=False, slots=True)
class Op:
    """One operator, model input or tensor of the model. `value` is its fake value: shapes, no data.

    `target` is a portable operator's name, `INPUT` or `TENSOR`. `args` and `kwargs` refer to other ops.
    """

    name: str
    target: str
    value: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    grad: bool = True
    calls: tuple[ModuleCall, ...] = ()
    index: int = -1
    raw: bool = False
    """A model input, or one only rearranged: what must not leave the device."""
    constant: bool = False
    """Depends on sizes and constants alone, so that any part may compute it again."""
    movable: bool = False
    """Depends on weights but on no input: belongs to the part that needs it first."""
    uses: tuple[Op, ...] = field(init=False)
    """The ops it takes, each as often as it takes it."""

    def __post_init__(self) -> None:
        self.uses = tuple(references((self.args, tuple(self.kwargs.values()))))

    def __repr__(self) -> str:
        return f"<{self.name}: {self.target}>"

    @property
    def is_number(self) -> bool:
        return isinstance(self.value, torch.SymInt | torch.SymFloat)

    @property
    def needs_grad(self) -> bool:
        return isinstance(self.value, Tensor) and self.value.requires_grad

    @property
    def rearranges(self) -> bool:
        """Return whether the values of its first argument come out unchanged, only elsewhere."""
        return self.target in VIEWS or self.target in COPIES

    @property
    def random(self) -> bool:
        return self.target not in (INPUT, TENSOR) and is_random(self.target, self.args, self.kwargs)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A parameter, buffer or constant of the model. `names`: all its names, the main one first."""

    names: tuple[str, ...]
    kind: str
    tensor: Tensor
    persistent: bool = True


@dataclass(slots=True)
class Trace:
    """The model in one mode. `ops` are in order of execution, without inputs and tensors."""

    inputs: list[Op]
    tensors: dict[Op, TensorInfo]
    ops: list[Op]
    outputs: list[Op]
    written: frozenset[Op] = frozenset()
    """Tensors that some operator writes into: running statistics."""
    live: frozenset[Op] = frozenset()
    """Ops that the outputs need, or that have an effect."""
    ends: dict[ModuleCall, int] = field(default_factory=dict)
    """The index of the last op of every module call that has one, in order of execution."""
    users: dict[Op, list[Op]] = field(default_factory=dict)
    """The ops that use each movable op."""
    notes: tuple[str, ...] = ()
    """Notes, in whole sentences, on what is right and may surprise the user."""

    def settle(self, changing: Collection[str] = ()) -> None:
        """Number the ops once all are there, and note which are raw inputs, which are constants, and which
        are needed.

        `changing`: tensors that the model writes in some mode. A buffer that it never writes is a constant of
        the model's: nothing is learnt from data in it, and both sides may have it.
        """
        self.users = {}
        for op, info in self.tensors.items():
            fixed = op not in self.written and op.name not in changing
            op.constant = info.kind != "parameter" and fixed
        for index, op in enumerate(self.ops):
            op.index = index
            op.raw = op.rearranges and any(used.raw for used in references(op.args[:1]))
            plain = not op.random and not is_in_place_op(op)
            op.constant = plain and all(used.is_number or used.constant for used in op.uses)
            op.movable = plain and not op.constant and all(self._is_weight(used) for used in op.uses)
            for used in op.uses:
                if used.movable:
                    self.users.setdefault(used, []).append(op)

        ends = {call: op.index for op in self.ops for call in op.calls}
        self.ends = dict(sorted(ends.items(), key=lambda item: (item[1], item[0][0].count("."))))
        live: set[Op] = set()
        todo = [*self.outputs, *(op for op in self.ops if self.has_effect(op))]
        while todo:
            op = todo.pop()
            if op not in live:
                live.add(op)
                todo.extend(op.uses)
        self.live = frozenset(live)

    def _is_weight(self, op: Op) -> bool:
        """Return whether the op stays the same within a step, whatever the inputs are."""
        return op.is_number or op.constant or op.movable or (op in self.tensors and op not in self.written)

    def has_effect(self, op: Op) -> bool:
        """Return whether the op must run even if nobody uses its value: it writes a buffer, or
        draws numbers."""
        return (
            bool(running_statistics(op))
            or op.random
            or (is_in_place(op.target) and root_of(op) in self.tensors)
        )


def references(value: Any) -> Iterator[Op]:
    """The ops within an argument."""
    if isinstance(value, Op):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from references(item)


def replaced(value: Any, change: Callable[[Op], Any]) -> Any:
    """The argument with every op in it changed."""
    if isinstance(value, Op):
        return change(value)
    if isinstance(value, list | tuple):
        return [replaced(item, change) for item in value]
    return value


def root_of(op: Op) -> Op:
    """The op whose memory this one writes or shows, by in-place operators and views."""
    while (
        op.args
        and isinstance(op.args[0], Op)
        and (op.target in VIEWS or op.target == "getitem" or is_in_place_op(op))
    ):
        op = op.args[0]
    return op


def running_statistics(op: Op) -> tuple[Op, ...]:
    """The buffers that a normalisation moves towards the statistics of what it is given."""
    if op.target in (INPUT, TENSOR) or not uses_statistics(op.target, op.args):
        return ()
    return tuple(kept for kept in op.args[3:5] if isinstance(kept, Op))


def is_in_place_op(op: Op) -> bool:
    return op.target not in (INPUT, TENSOR) and is_in_place(op.target)


def dim_of(size: int | torch.SymInt) -> Dim | None:
    """A traced size as a portable dimension; None if it does not grow evenly with batch and length."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    symbols = list(expression.free_symbols)
    if not symbols:
        return int(expression)
    if len(symbols) > 2 or not expression.is_polynomial(*symbols):
        return None
    kinds = [_is_length(size, symbol) for symbol in symbols]
    if len(set(kinds)) != len(kinds):
        return None
    names = {(): "plus", (False,): "batch", (True,): "length", (False, True): "both"}
    parts: dict[str, int] = {}
    for powers, part in expression.as_poly(*symbols).terms():
        if max(powers) > 1 or not part.is_integer:
            return None
        parts[names[tuple(sorted(k for k, power in zip(kinds, powers, strict=True) if power))]] = int(part)
    if any(part < 0 for name, part in parts.items() if name != "plus"):
        return None
    return FreeDim(**parts)


def _is_length(size: torch.SymInt, symbol: Any) -> bool:
    """Return whether a symbol is the length of the samples, and not the batch: the size of an input's other
    dimension than the first."""
    source = size.node.shape_env.var_to_sources[symbol][0]
    return bool(source.idx != 0)


def same_number(left: Any, right: Any) -> bool:
    """Return whether two traced sizes are the same at every batch size and length."""
    if isinstance(left, int) or isinstance(right, int):
        return isinstance(left, int) and isinstance(right, int) and left == right
    return bool(left.node.expr == right.node.expr)
