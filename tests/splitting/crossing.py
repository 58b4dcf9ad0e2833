"""The values that cuts send and keep, counted by cutting there: the planner's quick sums are held against
them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.splitting.export import TracedModel
from spliteasy.splitting.lowering import value_spec
from spliteasy.splitting.places import cut_places
from spliteasy.splitting.split import partitions


@dataclass(frozen=True, slots=True)
class Crossing:
    """The values that one cut, or a pair of cuts, sends and keeps in training, and the places of the
    parameters."""

    up: tuple[ValueSpec, ...]
    down: tuple[ValueSpec, ...]
    kept: tuple[ValueSpec, ...]
    parameters: tuple[int, ...]
    """Parameters (elements) per segment."""

    def bytes_up(self, batch: int) -> int:
        """Activations of the head and gradients of the tail, per step, nothing compressed."""
        return _bytes(self.up, batch) + _grad_bytes(self.down, batch)

    def bytes_down(self, batch: int) -> int:
        """Activations of the body and gradients for the head, per step."""
        return _bytes(self.down, batch) + _grad_bytes(self.up, batch)


def crossing(traced: TracedModel, cuts: str | Sequence[str]) -> Crossing:
    """Return what crosses at these cuts. Raises `CutError` where they can't be right, `JobError` for odd
    shapes."""
    _, train, evaluation = partitions(traced, cuts, ())
    for op in (*evaluation.up, *evaluation.down):
        value_spec(op)
    infos = traced.train.tensors
    return Crossing(
        up=tuple(value_spec(op) for op in train.up),
        down=tuple(value_spec(op) for op in train.down),
        kept=tuple(value_spec(op) for op in train.kept),
        parameters=tuple(
            sum(infos[op].tensor.numel() for op in part.tensors if infos[op].kind == "parameter")
            for part in train.parts
        ),
    )


def legal_pairs(traced: TracedModel) -> Iterator[tuple[str, str, Crossing]]:
    """All pairs of places for a U-shape."""
    names = [name for name, _, _ in cut_places(traced.train)]
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            try:
                there = crossing(traced, (first, second))
            except JobError:
                continue
            yield first, second, there


def _bytes(values: Iterable[ValueSpec], batch: int) -> int:
    return sum(value.bytes_for(batch) for value in values)


def _grad_bytes(values: Iterable[ValueSpec], batch: int) -> int:
    return _bytes((value for value in values if value.needs_grad), batch)
