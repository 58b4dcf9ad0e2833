"""The places where a model can be cut, in order, with what crosses there: what a planner chooses from.

No segments are built: a trace is looked at, so that hundreds of places take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from spliteasy.errors import CutError, JobError
from spliteasy.portable.graph import ValueSpec
from spliteasy.splitting.exporting import TracedModel, trace_model
from spliteasy.splitting.lowering import value_spec
from spliteasy.splitting.places import name_of_call
from spliteasy.splitting.splitting import partitions


@dataclass(frozen=True, slots=True)
class Crossing:
    """What one cut, or a pair of cuts, sends and keeps in training, and where the parameters lie."""

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


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A place: after the module `cut`, which other names may share."""

    cut: str
    position: int
    """Place in the order of execution, in operators."""
    depth: float
    """The same as a fraction of the whole."""
    also: tuple[str, ...]
    crossing: Crossing

    @property
    def values(self) -> tuple[ValueSpec, ...]:
        """The boundary tensors of a single split here."""
        return self.crossing.up

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the boundary per sample, one way, nothing compressed."""
        return _bytes(self.values, 2) - _bytes(self.values, 1)


def cut_places(traced: TracedModel) -> list[tuple[str, int, tuple[str, ...]]]:
    """Every place after a module call, legal or not, in order: name, position, other names of the place."""
    ends = traced.train.ends
    by_end: dict[int, list[str]] = {}
    for call, end in ends.items():
        by_end.setdefault(end, []).append(name_of_call(call, ends))
    return [(names[0], end, tuple(names[1:])) for end, names in sorted(by_end.items())]


def crossing(traced: TracedModel, cuts: str | Sequence[str], *, share_inputs: Iterable[str] = ()) -> Crossing:
    """What crosses at these cuts. Raises `CutError` where they can't be right, `JobError` for odd shapes."""
    _, train, evaluation = partitions(traced, cuts, share_inputs)
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


def legal_cuts(
    model: nn.Module | TracedModel,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    *,
    share_inputs: Iterable[str] = (),
) -> list[CutPoint]:
    """All places for a single split, in order of execution. A model that is traced needs no inputs.

    Raises `JobError` for a model that can't be traced.
    """
    traced = _traced(model, example_inputs)
    shared, last = tuple(share_inputs), max(1, len(traced.train.ops) - 1)
    found = []
    for name, position, also in cut_places(traced):
        try:
            there = crossing(traced, name, share_inputs=shared)
        except JobError:
            continue
        found.append(CutPoint(name, position, position / last, also, there))
    return found


def legal_pairs(
    traced: TracedModel, *, share_inputs: Iterable[str] = (), places: Sequence[str] | None = None
) -> Iterator[tuple[str, str, Crossing]]:
    """All pairs of places for a U-shape, or those among `places` (given in order)."""
    names = list(places) if places is not None else [name for name, _, _ in cut_places(traced)]
    shared = tuple(share_inputs)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            try:
                there = crossing(traced, (first, second), share_inputs=shared)
            except JobError:
                continue
            yield first, second, there


def _traced(model: nn.Module | TracedModel, inputs: Tensor | tuple[Tensor, ...] | None) -> TracedModel:
    if isinstance(model, TracedModel):
        return model
    if inputs is None:
        raise CutError("a model that is not traced needs example inputs")
    return trace_model(model, inputs)


def _bytes(values: Iterable[ValueSpec], batch: int) -> int:
    return sum(value.bytes_for(batch) for value in values)


def _grad_bytes(values: Iterable[ValueSpec], batch: int) -> int:
    return _bytes((value for value in values if value.needs_grad), batch)
