"""The values that cross at every place and every pair of places, worked out for all of them at once.

`spliteasy.splitting` cuts a trace at given places and says exactly what crosses. A planner looks at tens
of thousands of pairs, so that here each value is noted once: where it is made and where it is used.
Integers and what depends on constants alone are left out, and so are the checks of the evaluation graph:
the few cuts that are shown are cut for real.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.splitting.export import TracedModel
from spliteasy.splitting.lowering import value_spec
from spliteasy.splitting.places import cut_places
from spliteasy.splitting.rules import origins
from spliteasy.splitting.trace import INPUT, TENSOR, Op, Trace

Numbers = npt.NDArray[np.float64]
_SIZES = ("getitem", "aten.sym_size.int")


@dataclass(frozen=True, slots=True, eq=False)
class Flowing:
    """A value that some cut sends. Positions are operators' numbers; an input is made at -1."""

    op: Op
    spec: ValueSpec
    made: int
    uses: tuple[int, ...]
    barred: bool
    """Must not cross: a model input (or a view of one) that is not shared, or a shape that can't travel."""

    def next_use(self, after: int) -> int:
        """Return the position of the first use behind that one; past all operators where there is none."""
        place = bisect_right(self.uses, after)
        return self.uses[place] if place < len(self.uses) else self.uses[-1] + 1


@dataclass(frozen=True, slots=True)
class Place:
    """A place where the model can be cut: after the module `cut`, at operator number `position`."""

    cut: str
    position: int
    depth: float
    """Position as a fraction of all operators."""
    crossing: tuple[int, ...]
    """Numbers (in `Flow.values`) of the values made before that are used behind."""


class Flow:
    """A trace's values and places. `shared`: inputs that may leave the device."""

    def __init__(self, traced: TracedModel, shared: Collection[str] = ()) -> None:
        self.trace = traced.train
        self.count = len(self.trace.ops)
        self.values = _values(self.trace, frozenset(shared))
        split_tensors = _spans(self.trace)
        self.places = tuple(
            Place(name, position, position / max(1, self.count - 1), self._crossing(position))
            for name, position, _ in cut_places(traced.train)
            if self._computes(0, position + 1)
            and self._computes(position + 1, self.count)
            and not any(first <= position < last for first, last in split_tensors)
        )

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """The positions of the places, in order."""
        return np.array([place.position for place in self.places], dtype=np.int64)

    def sums(self, costs: Numbers) -> Numbers:
        """Prefix sums of costs per operator: entry i is the cost of all up to place i's position."""
        whole = np.concatenate(([0.0], np.cumsum(costs)))
        return whole[self.positions + 1]

    def pairs_from(self, first: int, costs: Sequence[float], gradients: bool) -> tuple[Numbers, Numbers]:
        """Return what the pairs (`first`, every place) send up and down, where value v costs `costs[v]`.

        `gradients`: only the values that take one. Entries up to `first` mean nothing.
        """
        at = self.places[first]
        chosen = [v for v in at.crossing if not gradients or self.values[v].spec.needs_grad]
        up, passing = np.zeros(len(self.places)), np.zeros(len(self.places))
        for v in chosen:
            value = self.values[v]
            up[np.searchsorted(self.positions, value.next_use(at.position)) :] += costs[v]
            passing[: np.searchsorted(self.positions, value.uses[-1])] += costs[v]
        return up, self.live(costs, gradients) - passing

    def live(self, costs: Sequence[float], gradients: bool) -> Numbers:
        """Return what a single cut at each place sends."""
        return np.array(
            [
                sum(costs[v] for v in place.crossing if not gradients or self.values[v].spec.needs_grad)
                for place in self.places
            ]
        )

    def sent_up(self, first: int, second: int | None = None) -> tuple[int, ...]:
        """The values that the head sends to the body (second None: to all the rest)."""
        at = self.places[first]
        if second is None:
            return at.crossing
        end = self.places[second].position
        return tuple(v for v in at.crossing if self.values[v].next_use(at.position) <= end)

    def barred_from(self, first: int) -> int:
        """Return the first place at which, as the second cut, a barred value would cross, or one past the
        last if there is none."""
        uses = [
            self.values[v].next_use(self.places[first].position)
            for v in self.places[first].crossing
            if self.values[v].barred
        ]
        return int(np.searchsorted(self.positions, min(uses))) if uses else len(self.places)

    def _crossing(self, position: int) -> tuple[int, ...]:
        return tuple(
            number
            for number, value in enumerate(self.values)
            if value.made <= position and value.uses[-1] > position
        )

    @cached_property
    def _work(self) -> npt.NDArray[np.int64]:
        """The number of live operators that compute, up to each position."""
        live = [op in self.trace.live and op.target not in _SIZES for op in self.trace.ops]
        return np.concatenate(([0], np.cumsum(live)))

    def _computes(self, begin: int, end: int) -> bool:
        return bool(self._work[end] > self._work[begin])


def position_of(op: Op) -> int:
    """The number of the operator that makes a value; -1 for an input."""
    while op.target == "getitem":
        op = op.args[0]
    return -1 if op.target == INPUT else op.index


def _values(trace: Trace, shared: frozenset[str]) -> tuple[Flowing, ...]:
    uses: dict[Op, list[int]] = {}
    for op in trace.ops:
        if op in trace.live:
            for used in op.uses:
                uses.setdefault(used, []).append(position_of(op))
    for output in trace.outputs:
        uses.setdefault(output, []).append(len(trace.ops))
    found = []
    for op, where in uses.items():
        if op.target == TENSOR or op.constant or not isinstance(op.value, Tensor):
            continue
        made = position_of(op)
        if max(where) > made:
            spec = _spec_or_none(op)
            barred = spec is None or (op.raw and not origins(op) <= shared)
            found.append(Flowing(op, spec or _NO_SPEC, made, tuple(sorted(where)), barred))
    return tuple(found)


_NO_SPEC = ValueSpec(name="none", dtype=None)


def _spec_or_none(op: Op) -> ValueSpec | None:
    try:
        return value_spec(op)
    except JobError:
        return None


def _spans(trace: Trace) -> list[tuple[int, int]]:
    """First and last use of each tensor that training changes: no cut may come between."""
    spans: dict[Op, tuple[int, int]] = {}
    for op in trace.ops:
        if op not in trace.live:
            continue
        at = position_of(op)
        for used in op.uses:
            if used.target == TENSOR:
                first, last = spans.get(used, (at, at))
                spans[used] = (min(first, at), max(last, at))
    changing = trace.written | {op for op in spans if trace.tensors[op].tensor.requires_grad}
    return [span for op, span in spans.items() if op in changing and span[0] < span[1]]
