"""Distance correlation on a sample measures how much of the inputs shows in what crosses a cut.

0 where inputs and activations are independent, 1 where one is the other up to scale and rotation
(Székely, Rizzo, Bakirov 2007). The estimate is the bias-corrected one (Székely, Rizzo 2013): the plain
one comes near 1 for any two things of many dimensions and few samples. It says how alike the distances
among samples are, not what an attacker can do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from spliteasy.graph.document import FreeDim, ValueSpec
from spliteasy.planning.costs import Numbers
from spliteasy.planning.flow import Flow
from spliteasy.planning.whole_model import whole_segment
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.export import TracedModel

MIN_SAMPLES = 4
"""The bias correction needs so many."""


class InputCorrelation:
    """Distances among the samples of one batch: in the inputs, and in every value that a cut can send."""

    def __init__(self, traced: TracedModel, flow: Flow, inputs: Sequence[Tensor]) -> None:
        """Runs the training graph once. Takes (samples)² floats for each value."""
        self._inputs = _centred(np.sqrt(sum(squared_distances(x) for x in inputs)))
        self._squares = _squares_of_values(traced, flow, inputs)
        self._known: dict[frozenset[int], float] = {}

    def of(self, values: Collection[int]) -> float:
        """Return the distance correlation, 0 to 1, between the inputs and these values (numbers in
        `flow.values`) taken together."""
        chosen = frozenset(v for v in values if v in self._squares)
        if chosen not in self._known:
            together = np.sqrt(sum((self._squares[v] for v in chosen), np.zeros_like(self._inputs)))
            self._known[chosen] = _correlation(self._inputs, _centred(together))
        return self._known[chosen]


def distance_correlation(left: Tensor, right: Tensor) -> float:
    """Return the distance correlation, 0 to 1, of two tensors with a row for each sample, at least 4."""
    return _correlation(*(_centred(np.sqrt(squared_distances(each))) for each in (left, right)))


def squared_distances(samples: Tensor) -> Numbers:
    """Return the squared distance of every two rows. For integers (tokens) it is the number of places in
    which they differ."""
    flat = samples.detach().reshape(samples.shape[0], -1)
    if not flat.is_floating_point():
        return np.array([(flat != row).sum(1).tolist() for row in flat], dtype=np.float64)
    flat = flat.float()
    flat = flat - flat.mean(0)
    gram = (flat @ flat.T).double()
    norms = gram.diagonal()
    distances: Numbers = (norms[:, None] + norms[None, :] - 2 * gram).clamp_min(0).fill_diagonal_(0).numpy()
    return distances


def _centred(distances: Numbers) -> Numbers:
    """U-centred: rows and columns have no mean, without the diagonal's bias."""
    n = len(distances)
    rows = distances.sum(1) / (n - 2)
    centred: Numbers = distances - rows[:, None] - rows[None, :] + distances.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    return centred


def _correlation(left: Numbers, right: Numbers) -> float:
    scale = float(np.sqrt((left * left).sum() * (right * right).sum()))
    return float(np.sqrt(max(0.0, float((left * right).sum()) / scale))) if scale > 0 else 0.0


@torch.no_grad()
def _squares_of_values(traced: TracedModel, flow: Flow, inputs: Sequence[Tensor]) -> dict[int, Numbers]:
    """Squared distances in every value that crosses at some place."""
    wanted = {v: flow.values[v] for place in flow.places for v in place.crossing}
    segment, _ = whole_segment(traced)
    ops = [op for op in traced.train.ops if op in traced.train.live]
    numbers = {value.op: v for v, value in wanted.items()}
    found: dict[int, Numbers] = {}
    turn = iter(ops)

    def invoke(call: object, args: list[object], kwargs: dict[str, object]) -> object:
        made = call(*args, **kwargs)  # type: ignore[operator]
        number = numbers.get(next(turn))
        if number is not None:
            found[number] = squared_distances(rows_of(made, wanted[number].spec))
        return made

    for op, x in zip(traced.train.inputs, inputs, strict=True):
        if op in numbers:
            found[numbers[op]] = squared_distances(x)
    with states_kept():
        segment.program.train(list(segment.tensors().values()), list(inputs), invoke=invoke)
    return {v: square for v, square in found.items() if len(square) == inputs[0].shape[0]}


def rows_of(value: Tensor, spec: ValueSpec) -> Tensor:
    """A row for each sample, where the value has the batch in one of its dimensions (times a number)."""
    for place, dim in enumerate(spec.shape):
        if isinstance(dim, FreeDim) and not dim.per_length and dim.plus == 0:
            moved = value.movedim(place, 0)
            return moved.reshape(moved.shape[0] // dim.batch, -1)
    return value.reshape(1, -1)


def varies(tensors: Iterable[Tensor]) -> bool:
    """Return whether the samples differ at all."""
    return any(len(x) > 1 and bool((x != x[:1]).any()) for x in tensors)
