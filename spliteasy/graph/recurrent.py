"""Check calls of the recurrent operators: torch trusts their lists, and crashes where they are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph import limits

GATES = {"aten.lstm.input": 4, "aten.gru.input": 3, "aten.rnn_tanh.input": 1, "aten.rnn_relu.input": 1}
"""The operators over sequences, and how many gates a cell has."""


def check_recurrent(op: str, args: Sequence[Any]) -> None:
    """Raises `PortableError` unless every tensor has the shape that the operator will read."""
    if op == "aten.lstm_cell.default":
        if len(args) < 2 or not _tensors(args[1]) or len(args[1]) != 2:
            raise PortableError(f"{op} takes two states")
        return
    if op not in GATES:
        return
    if len(args) != 9:
        raise PortableError(f"{op} takes nine plain arguments")
    inputs, state, weights, biases, layers, dropout, *flags = args
    states = state if op == "aten.lstm.input" else [state]
    fine = isinstance(inputs, Tensor) and inputs.dim() == 3 and _tensors(states) and _tensors(weights)
    fine = fine and type(layers) is int and 0 < layers <= 1024 and 0.0 <= dropout <= 1.0
    if not fine or not all(type(flag) is bool for flag in (biases, *flags)):
        raise PortableError(f"{op} is called with arguments of other kinds")
    if max(inputs.shape) > limits.SEQUENCE:
        raise PortableError(f"{op} over a sequence longer than {limits.SEQUENCE}")
    _check_shapes(op, inputs, states, weights, bool(biases), layers, 2 if flags[1] else 1, bool(flags[2]))


def _check_shapes(
    op: str,
    inputs: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    directions: int,
    batch_first: bool,
) -> None:
    """`weights`: per layer and direction for input, hidden state, biases, and perhaps a projection."""
    each = 4 if biases else 2
    projected = op == "aten.lstm.input" and len(weights) == layers * directions * (each + 1)
    if len(weights) != layers * directions * (each + projected):
        raise PortableError(f"{op} is called with {len(weights)} weights")
    rows = weights[1].shape[0] if weights[1].dim() == 2 else 0
    hidden = rows // GATES[op]
    given = weights[each].shape[0] if projected and weights[each].dim() == 2 else hidden
    batch = inputs.shape[0 if batch_first else 1]
    wanted = [(layers * directions, batch, given), (layers * directions, batch, hidden)]
    if [tuple(state.shape) for state in states] != wanted[: 2 if op == "aten.lstm.input" else 1]:
        raise PortableError(f"{op} is called with states of other shapes")
    shapes: list[tuple[int, ...]] = []
    for layer in range(layers):
        width = given * directions if layer else inputs.shape[2]
        shapes += [
            (rows, width),
            (rows, given),
            *([(rows,), (rows,)] if biases else []),
            *([(given, hidden)] if projected else []),
        ] * directions
    if not hidden or [tuple(weight.shape) for weight in weights] != shapes:
        raise PortableError(f"{op} is called with weights of other shapes")
    if {tensor.dtype for tensor in (*states, *weights)} != {inputs.dtype}:
        raise PortableError(f"{op} is called with several dtypes")


def _tensors(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, Tensor) for value in values)
