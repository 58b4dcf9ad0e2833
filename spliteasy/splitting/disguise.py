"""Inputs in disguise: what crosses tells them to somebody who knows none of the device's weights.

A head of `x * 1`, of a ReLU on images from 0 to 1, or of a permutation sends its input under another name.
Names of operators do not tell, so it is measured. Every input is filled with its lowest and its highest
value, arranged so that each element has a pattern of its own over some forty runs. An output that takes two
values in the very pattern of one element is a function of this element alone; one that mixes several takes
more values, or another pattern. Runs with many values in between tell then which kind of function it is.
In every run each row of numbers has the same values in another order, so that normalisations by mean and
variance stand still.

Such a function is a disguise of one element already where it is the same under other weights, because then
it is known. Where weights make it, it is a disguise where it covers a good part of the input: a scale for
each channel hides no picture, while the first step of a recurrent layer, and the corner of a padded
convolution, are few numbers under weights of their own. A linear layer mixes elements by weights that nobody
else has, and is no disguise however wide it is. What mixes elements without any weight (differences, running
sums, sorting) is judged by `spliteasy.splitting.weightless`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spliteasy.graph.document import Graph, Ref
from spliteasy.graph.encoding import decode_argument
from spliteasy.graph.segment import Segment
from spliteasy.runtime.generators import seed_all, states_kept
from spliteasy.splitting.weightless import share_without_weights, with_other_weights

Kind = Literal["equal", "affine", "monotone", "function", "lookup", "mixed"]

_GROUP = 16
"""Elements in a row, at the least, whose values are only put in another order from run to run."""
_SWEEPS = 24
"""Runs with values in between."""
_JUDGED = 4096
"""Elements of one value that are looked at in these."""
_SAME, _STEP, _HUGE = 1e-3, 1e-5, 1e30
_FLIPPED = 16
"""Runs after which an element that has always had one value is given up."""
_MOST, _MANY, _PART = 0.5, 8, 0.125
"""Functions that weights make are a disguise of more than this share of an input; or of so many elements of a
sample that are this share or more."""
_OFTEN = 0.01
"""The share of one value's elements that must be such functions: among very many that mix a few numbers by
weights, some do it like one of a single number."""
_MIXED = 0.6
"""The share of an input that what crosses must determine without weights, where it mixes elements."""
_SEED = 20261
_INDEXED = {
    "aten.embedding.default": 1,
    "aten.index.Tensor": 1,
    "aten.index_select.default": 2,
    "aten.gather.default": 2,
    "aten.take.default": 1,
}
"""The argument of each operator that says what is looked up in another one."""


@dataclass(frozen=True, slots=True)
class Disguise:
    """Output `place` on the wire shows elements of input `source`, each by itself.

    `lookup`: by a table with an entry for each whole number. Who knows the table knows the input; who does
    not can count how often each entry comes.
    """

    place: int
    source: int
    kind: Kind
    share: float
    """The share of the input that it shows."""

    @property
    def words(self) -> str:
        """The change of each element, in words."""
        return {
            "equal": "as it is",
            "affine": "scaled or shifted only",
            "monotone": "through a monotone function only",
            "function": "through a function of its own only",
            "lookup": "through a table",
            "mixed": "mixed with others without any weight, which anybody can undo",
        }[self.kind]


def find_disguises(
    segment: Segment, inputs: Sequence[Tensor], *, training: bool, shared: Collection[int] = ()
) -> list[Disguise]:
    """Return what the segment, in that mode, sends of `inputs` in disguise; inputs in `shared` may cross.

    `inputs` is a batch that the segment can be run on: it gives ranges of values and sizes. A segment that
    can't be run on other values of these ranges is measured on none, and nothing is found.
    """
    spy = segment.spawn().train(training)
    other = with_other_weights(spy)
    filler = _Filler(inputs, shared)
    found: dict[tuple[int, int], Disguise] = {}

    def running(segment: Segment) -> Run:
        def run(values: Sequence[Tensor]) -> list[Tensor]:
            seed_all(_SEED)
            outputs = segment.spawn()(*values)[: segment.n_wire]
            return [_numbers(value) for value in outputs if isinstance(value, Tensor)]

        return run

    run = running(spy)
    with torch.no_grad(), states_kept():
        wire = spy.output_values[: spy.n_wire]
        places = [place for place, value in enumerate(wire) if not value.is_int]
        document = spy.program.document
        direct = _direct_sources(document.graph(training), len(document.tensors))
        for low in (0.0, 0.37):
            try:
                pairs = _pairs(run, filler, low)
                if pairs is not None:
                    for each in _judge((run, running(other)), filler, *pairs, places, direct):
                        found.setdefault((each.place, each.source), each)
            except (RuntimeError, ValueError, IndexError):
                continue
        for source in {*filler.watched} - {source for _, source in found}:
            share = share_without_weights(spy, filler.fill(_GROUP, 0.0), source)
            if share > _MIXED:
                place = next(place for place in places if source in direct[place])
                found[place, source] = Disguise(place, source, "mixed", share)
    return [each for _, each in sorted(found.items())]


def measured_by(inputs: Sequence[Tensor], shared: Collection[int] = ()) -> str:
    """Return all that a measurement takes from `inputs`, as text: sizes, types and ranges; where an input has
    one value only, that is kept, and stands here too."""
    filler = _Filler(inputs, shared)
    about = []
    for x, (low, high) in zip(filler._inputs, filler._ranges, strict=True):
        kept = x.flatten().tolist() if low == high else []
        about.append(f"{x.dtype} {tuple(x.shape)} {low!r} {high!r} {kept}")
    return f"{filler.watched} {about}"


class _Filler:
    """Fills the inputs with values of their range."""

    def __init__(self, inputs: Sequence[Tensor], shared: Collection[int]) -> None:
        elements = max(tensor[0].numel() for tensor in inputs)
        rows = 2 if elements >= 1024 else 4
        self.rows = rows
        self._inputs = [torch.cat([x] * -(-rows // len(x)))[:rows] for x in inputs]
        self._ranges = [_range_of(x) for x in inputs]
        self._random = torch.Generator().manual_seed(_SEED)
        self.watched = [
            source
            for source, (low, high) in enumerate(self._ranges)
            if low != high and source not in shared and inputs[source].numel()
        ]
        self.starts = [0]
        for source in self.watched:
            self.starts.append(self.starts[-1] + self._inputs[source].numel())

    @property
    def elements(self) -> int:
        return self.starts[-1]

    def whole(self, source: int) -> bool:
        """Return whether the input consists of whole numbers, which may be names of things."""
        return not self._inputs[source].is_floating_point() and self._inputs[source].dtype != torch.uint8

    def distinct(self, source: int) -> float:
        """Return how many whole numbers its range has."""
        low, high = self._ranges[source]
        return high - low + 1

    def fill(self, levels: int, least: float) -> list[Tensor]:
        """New inputs, of so many values from `least` of the range to its end."""
        filled = []
        for x, (low, high) in zip(self._inputs, self._ranges, strict=True):
            if low == high or not x.numel():
                filled.append(x)
                continue
            if self.whole(len(filled)):
                ladder = torch.rand(x.numel(), dtype=torch.float64, generator=self._random)
                ladder = ladder.round() if levels == 2 else ladder
                values = (low + (high - low) * (least + (1 - least) * ladder)).round()
                filled.append(values.reshape(x.shape).to(x.dtype))
                continue
            group = _group_of(x)
            steps = torch.linspace(0, 1, levels, dtype=torch.float64)
            few = group < levels
            if few:
                steps = torch.linspace(0, 1, group, dtype=torch.float64)
            ladder = steps if few else steps[(torch.arange(group) * levels) // group]
            order = torch.rand(x.numel() // group, group, generator=self._random).argsort(1)
            values = low + (high - low) * (least + (1 - least) * ladder[order])
            if not x.is_floating_point():
                values = values.round()
            filled.append(values.reshape(x.shape).to(x.dtype))
        return filled

    def watched_values(self, values: Sequence[Tensor]) -> Tensor:
        """The elements of the watched inputs, one after the other."""
        return torch.cat([values[source].double().flatten() for source in self.watched])


def _range_of(x: Tensor) -> tuple[float, float]:
    if x.dtype == torch.bool:
        return 0.0, 1.0
    values = x.double()
    values = values[values.isfinite()]
    if not values.numel():
        return 0.0, 0.0
    low, high = float(values.min()), float(values.max())
    return (low, low + 1) if low == high and x.is_floating_point() else (low, high)


def _group_of(x: Tensor) -> int:
    """The elements of the last dimensions that have enough of them; of a small sample, all."""
    group = 1
    for size in reversed(x.shape[1:]):
        group *= size
        if group >= _GROUP:
            return group
    return group if group >= 4 else x.numel()


def _numbers(value: Tensor) -> Tensor:
    return torch.nan_to_num(value.double().flatten(), nan=-2 * _HUGE, posinf=_HUGE, neginf=-_HUGE)


Run = Callable[[Sequence[Tensor]], list[Tensor]]


def _pairs(run: Run, filler: _Filler, least: float) -> tuple[Tensor, Tensor, list[int]] | None:
    """Elements of what crosses, and the one element of the watched inputs that each depends on.

    Also the number of elements of each value. None where there is none.
    """
    if not filler.elements:
        return None
    runs = min(62, 2 * filler.elements.bit_length() + 12)
    codes = torch.zeros(filler.elements, dtype=torch.int64)
    index = first = second = seen = pattern = torch.empty(0)
    sizes: list[int] = []
    start = codes
    for number in range(runs):
        values = filler.fill(2, least)
        bits = filler.watched_values(values)
        outputs = run(values)
        given = torch.cat(outputs) if outputs else torch.empty(0)
        if number == 0:
            start, sizes = bits, [len(output) for output in outputs]
            index, first, second = torch.arange(len(given)), given, given.clone()
            seen, pattern = (
                torch.zeros(len(given), dtype=torch.bool),
                torch.zeros(len(given), dtype=torch.int64),
            )
            continue
        codes |= (bits != start).long() << number
        now = given[index]
        old = (now - first).abs() <= torch.where(
            seen, _SAME * (second - first).abs(), _STEP * first.abs() + 1e-12
        )
        second = torch.where(seen | old, second, now)
        seen = seen | ~old
        new = ~old & ((now - second).abs() <= _SAME * (second - first).abs())
        pattern |= new.long() << number
        stay = (old | new) & (seen | (number < _FLIPPED))
        index, first, second, seen, pattern = (t[stay] for t in (index, first, second, seen, pattern))
        if not len(index):
            return None
    index, pattern = index[seen], pattern[seen]
    ordered, places = codes.sort()
    slot = torch.searchsorted(ordered, pattern).clamp(max=len(ordered) - 1)
    match = ordered[slot] == pattern
    return (index[match], places[slot[match]], sizes) if bool(match.any()) else None


def _judge(
    runs: tuple[Run, Run],
    filler: _Filler,
    outputs: Tensor,
    elements: Tensor,
    sizes: Sequence[int],
    places: Sequence[int],
    direct: Sequence[set[int]],
) -> list[Disguise]:
    """Return the kind of function of each pair of output and input; pairs that are no disguise are left out.

    `runs`: the segment with its weights, and with others.
    """
    given, made, otherwise = [], [], []
    for _ in range(_SWEEPS):
        values = filler.fill(_GROUP, 0.0)
        given.append(filler.watched_values(values)[elements])
        made.append(torch.cat(runs[0](values))[outputs])
        otherwise.append(torch.cat(runs[1](values))[outputs])
    x, y, z = torch.stack(given), torch.stack(made), torch.stack(otherwise)
    known = ((y - z).abs() <= _SAME * (y.amax(0) - y.amin(0)) + 1e-9).all(0)
    found, begin = [], 0
    for place, size in zip(places, sizes, strict=True):
        for number, source in enumerate(filler.watched):
            ours = (outputs >= begin) & (outputs < begin + size)
            ours &= (elements >= filler.starts[number]) & (elements < filler.starts[number + 1])
            if bool((ours & known).any()):
                ours &= known
            elif not _covers(filler, number, elements[ours], size):
                continue
            share = len(torch.unique(elements[ours])) / (filler.starts[number + 1] - filler.starts[number])
            kind = _kind(x[:, ours], y[:, ours]) if source in direct[place] else "lookup"
            if filler.whole(source):
                whole = _kind_of_whole(
                    x[:, ours], y[:, ours], elements[ours], filler.distinct(source), source in direct[place]
                )
                kind = whole
            if kind is None:
                continue
            found.append(Disguise(place, source, kind, share))
        begin += size
    return found


def _covers(filler: _Filler, number: int, elements: Tensor, outputs: int) -> bool:
    """Return whether functions that weights make, one for each of `elements`, tell a good part of
    the input."""
    count = filler.starts[number + 1] - filler.starts[number]
    told = len(torch.unique(elements))
    many = told >= _MANY * filler.rows and told >= _PART * count
    return (many or told > _MOST * count) and len(elements) >= _OFTEN * outputs


def _kind(x: Tensor, y: Tensor) -> Kind | None:
    """The simplest kind that some element is; None where a step function of several may be all there is."""
    x, y = x[:, :_JUDGED], y[:, :_JUDGED]
    equal, affine, monotone = _kinds(x, y)
    if bool(equal.any()):
        return "equal"
    if bool(affine.any()):
        return "affine"
    if bool(monotone.any()):
        return "monotone"
    distinct = 1 + (y.sort(0).values.diff(dim=0) != 0).sum(0)
    return "function" if bool((distinct >= _SWEEPS // 2).any()) else None


def _kinds(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each column whether y is x, is affine in x, is monotone in x."""
    x, order = x.sort(0)
    y = y.gather(0, order)
    span = y.amax(0) - y.amin(0)
    slack = _SAME * span + 1e-12
    line = y[:1] + (y[-1:] - y[:1]) * (x - x[:1]) / (x[-1:] - x[:1]).clamp(min=1e-300)
    steps = y.diff(dim=0)
    varies = (span > 0) & ((y == y.mode(0).values).sum(0) <= len(y) - 4)
    equal = varies & ((y - x).abs() <= 1e-6 * x.abs() + 1e-9).all(0)
    affine = varies & ((y - line).abs() <= slack).all(0)
    monotone = varies & ((steps >= -slack).all(0) | (steps <= slack).all(0))
    return equal, affine, monotone


def _kind_of_whole(x: Tensor, y: Tensor, elements: Tensor, distinct: float, direct: bool) -> Kind | None:
    """Return what becomes of whole numbers. A mask of them tells two kinds apart, which is nothing."""
    equal, affine, monotone = _kinds(x, y)
    tells = max(2.0, min(3.0, distinct))
    told = 0
    for element in torch.unique(elements)[:16]:
        told = max(told, len(torch.unique(y[:, elements == element][:, :_JUDGED], dim=0)))
    if told < tells:
        return None
    if direct and distinct > 2:  # a mask of two values is told, not refused: most models of text read one
        if bool(equal.any()):
            return "equal"
        if bool(affine.any()):
            return "affine"
        if bool(monotone.any()) and (distinct >= 6 or float(monotone.double().mean()) > 0.5):
            return "monotone"
    return "lookup"


def _direct_sources(graph: Graph, tensors: int) -> list[set[int]]:
    """Return for each output the inputs that reach it otherwise than as an index into a table."""
    reached: list[set[int]] = [set() for _ in range(tensors)]
    reached += [{source} for source in range(len(graph.inputs))]
    for node in graph.nodes:
        index = _INDEXED.get(node.op)
        args = [arg for place, arg in enumerate(node.args) if place != index]
        slots = list(_slots([decode_argument(arg) for arg in (*args, *node.kwargs.values())]))
        reached.append(set().union(*(reached[slot] for slot in slots)))
    return [reached[slot] for slot in graph.results]


def _slots(value: Any) -> Iterator[int]:
    if isinstance(value, Ref):
        yield value.slot
    elif isinstance(value, list):
        for item in value:
            yield from _slots(item)
