"""Split a model: `split()` and what it gives."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spliteasy.errors import CutError, JobError, PortableError
from spliteasy.graph.checker import check_program
from spliteasy.graph.document import Document, ValueSpec
from spliteasy.graph.program import Batches, Program
from spliteasy.graph.segment import Segment
from spliteasy.splitting.boundaries import Part, Partition
from spliteasy.splitting.disguise import Disguise, find_disguises
from spliteasy.splitting.export import TracedModel, trace_model
from spliteasy.splitting.lowering import lower, tensor_spec, value_spec
from spliteasy.splitting.places import find_call, name_of_call
from spliteasy.splitting.rules import check_partition, regrouped_sums, tied_ends
from spliteasy.splitting.trace import TENSOR, Op, TensorInfo, Trace

NAMES = ("head", "body", "tail")
TRIES = 24
"""Cuts near by that are looked at, for one that is exact."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The values that cross one cut, in training."""

    cut: str
    values: tuple[ValueSpec, ...]

    def bytes_for(self, batch: int, length: int = 0) -> int:
        """Bytes over the wire in one direction at that batch size and length, nothing compressed."""
        return sum(value.bytes_for(batch, length) for value in self.values)

    def grad_bytes_for(self, batch: int, length: int = 0) -> int:
        """Bytes of the gradients that come back."""
        return sum(value.bytes_for(batch, length) for value in self.values if value.needs_grad)


@dataclass(frozen=True, slots=True)
class Split:
    """A model in two segments (`tail` is None: the labels are shared) or three.

    `head(*inputs)` gives the values for the wire, then `skips`, which stay for the tail;
    `body(*up)` gives the values down; `tail(*down, *skips)` gives the model's outputs, flat.
    """

    head: Segment
    body: Segment
    tail: Segment | None
    boundaries: tuple[Boundary, ...]
    """One per cut: up, and (with a tail) down."""
    skips: tuple[ValueSpec, ...]
    """Values of the head that the tail uses: they stay on the device."""
    regrouped: tuple[str, ...] = ()
    """Values whose gradient is a sum of three or more terms that the split adds in another order.

    With n terms, each is off by at most 2 (n - 1) units in the last place of the sum of magnitudes.
    """
    notes: tuple[str, ...] = ()
    """Notes, in whole sentences, on what is right and may surprise."""
    lookups: tuple[str, ...] = ()
    """Notes, in whole sentences, on inputs of whole numbers that cross through a table."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        return (self.head, self.body) if self.tail is None else (self.head, self.body, self.tail)

    def state_dict(self) -> dict[str, Tensor]:
        """All parameters and persistent buffers under the original model's names."""
        return {name: value for segment in self.segments for name, value in segment.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state dict of the original model.

        Raises `JobError`, before anything changes, if names or shapes differ.
        """
        mine = self.state_dict()
        wrong = sorted(mine.keys() ^ state.keys())
        wrong += [name for name in mine.keys() & state.keys() if mine[name].shape != state[name].shape]
        if wrong:
            raise JobError(f"the state dict differs from the model's at {', '.join(wrong[:5])}")
        for segment in self.segments:
            segment.load_state_dict({name: state[name] for name in segment.state_dict()})

    def train(self, mode: bool = True) -> Split:
        for segment in self.segments:
            segment.train(mode)
        return self

    def eval(self) -> Split:
        return self.train(False)


def split(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    cuts: str | Sequence[str] = ("stem", "pool"),
    *,
    share_inputs: Iterable[str] = (),
) -> Split:
    """Split `model` after the named modules.

    `example_inputs`: one tensor, a tuple, or a mapping whose tensors are passed by keyword; batch first. The
    batch size stays free. The head takes the tensors in this order.
    `cuts`: one module path (head on the device, the rest on the server), or two (head, body, tail);
    `"relu#2"` means after the second call of `relu`, a plain path after the last.
    `share_inputs`: names of model inputs that may leave the device.

    The training graphs keep each submodule's mode as it is now: what was put to `eval()` stays frozen.
    The segments hold copies; the model stays as it was. Raises `CutError` for a cut that does not
    exist or can't be right, `JobError` for a model that can't be traced or made portable, or whose traces
    do not give what one step of the model gives by plain PyTorch. Warns of what is in `Split.notes`.
    """
    parts = split_traced(trace_model(model, example_inputs), cuts, share_inputs=share_inputs)
    for note in parts.notes:
        warnings.warn(note, stacklevel=2)
    return parts


def split_traced(
    traced: TracedModel,
    cuts: str | Sequence[str],
    *,
    share_inputs: Iterable[str] = (),
    loss_parameters: Sequence[TensorInfo] = (),
) -> Split:
    """`split` for a model that is traced already.

    `loss_parameters` belong to the tail, which returns them behind the model's outputs.
    Raises `JobError` if there is no tail for them, or one has a name of the model's.
    """
    shared = frozenset(share_inputs)
    names, train, evaluation = partitions(traced, cuts, shared)
    if loss_parameters:
        _check_loss_parameters(traced, names, loss_parameters)
        for partition in (train, evaluation):
            _return_tensors(partition.parts[-1], loss_parameters)
    parts = _assemble(traced, names, train, evaluation, loss_parameters)
    in_training = _disguised(traced, parts, names[0], shared, train.up, training=True)
    in_evaluation = _disguised(traced, parts, names[0], shared, evaluation.up, training=False)
    note = regrouped_note(traced, names, shared)
    notes = (*parts.notes, note) if note else parts.notes
    return replace(parts, notes=notes, lookups=tuple(dict.fromkeys((*in_training, *in_evaluation))))


def _disguised(
    traced: TracedModel, parts: Split, cut: str, shared: Collection[str], up: Sequence[Op], *, training: bool
) -> list[str]:
    """Inputs that cross through a table. Raises `CutError` for an input that crosses in disguise."""
    inputs = [op.name for op in traced.train.inputs]
    allowed = [place for place, name in enumerate(inputs) if name in shared]
    found = find_disguises(parts.head, traced.example, training=training, shared=allowed)
    told = []
    for each in found:
        name, op = inputs[each.source], up[each.place]
        if each.kind != "lookup":
            raise _refusal(each, cut, name, op, "training" if training else "evaluation")
        told.append(
            f"each whole number of the input {name!r} crosses the cut through a table, as {op.name}: anybody "
            "who knows the table reads the input, and who does not can count how often each number comes"
        )
    return told


def _refusal(found: Disguise, cut: str, name: str, op: Op, mode: str) -> CutError:
    module = f" in module {op.calls[-1][0]!r}" if op.calls else ""
    return CutError(
        f"cut after {cut!r}: in {mode}, {op.name} ({op.target}{module}) would carry {found.share:.0%} of the "
        f"model's input {name} out of the device, each element {found.words}",
        hint="cut behind layers that mix elements of the input, or "
        f"share_inputs=({name!r},) allows it (a job names it as its model.inputs do)",
    )


def regrouped_note(
    traced: TracedModel, cuts: str | Sequence[str], share_inputs: Iterable[str] = ()
) -> str | None:
    """Say at which cuts some gradient is added in another order, or None where all are exact.

    Raises `CutError` for cuts that can't be.
    """
    names, train, _ = partitions(traced, cuts, share_inputs)
    values = regrouped_sums(train)
    if not values:
        return None
    near = exact_cuts_near(traced, names, share_inputs)
    instead = f"; cuts = [{', '.join(map(repr, near))}] gives the same bits" if near else ""
    return (
        f"after {' and '.join(map(repr, names))} the gradient of {', '.join(values)} is added in another"
        " order than by plain PyTorch, so that the last bits differ: the head keeps it for the tail, and the"
        f" body uses it several times{instead}"
    )


def exact_cuts_near(
    traced: TracedModel, cuts: Sequence[str], share_inputs: Iterable[str] = ()
) -> tuple[str, ...] | None:
    """The next legal cuts where every gradient is added as plain PyTorch does, if a few tries show some."""
    ends = traced.train.ends
    places = [(name_of_call(call, ends), end) for call, end in ends.items()]
    first, second = (ends[find_call(cut, traced.train, traced.paths)] for cut in cuts)
    pairs = [((name, cuts[1]), abs(end - first)) for name, end in places if end < second and end != first]
    pairs += [((cuts[0], name), abs(end - second)) for name, end in places if end > first and end != second]
    for pair, _ in sorted(pairs, key=lambda each: each[1])[:TRIES]:
        with suppress(CutError):
            if not regrouped_sums(partitions(traced, pair, share_inputs)[1]):
                return pair
    return None


def _check_loss_parameters(
    traced: TracedModel, names: Sequence[str], loss_parameters: Sequence[TensorInfo]
) -> None:
    if len(names) == 1:
        raise JobError(
            "a loss with parameters of its own needs a tail to live in",
            hint='name a second cut, as in cuts = ["first", "second"]',
        )
    taken = {name for op, info in traced.train.tensors.items() for name in info.names}
    both = sorted(name for info in loss_parameters for name in info.names if name in taken)
    if both:
        raise JobError(
            f"the model and the loss both have a parameter {both[0]}",
            hint="rename the model's attribute `loss`: that name is for the loss's own parameters",
        )


def _return_tensors(part: Part, infos: Sequence[TensorInfo]) -> None:
    """Let the part own the tensors and return them as they are."""
    ops = [Op(info.names[0], TENSOR, info.tensor) for info in infos]
    part.tensors |= set(ops)
    part.outputs = [*part.outputs, *ops]
    part.wire = len(part.outputs)


def partitions(
    traced: TracedModel, cuts: str | Sequence[str], share_inputs: Iterable[str] = ()
) -> tuple[tuple[str, ...], Partition, Partition]:
    """The cuts' names, and the model cut there in each mode. Raises `CutError`."""
    names = (cuts,) if isinstance(cuts, str) else tuple(cuts)
    if len(names) not in (1, 2):
        raise CutError(f"{len(names)} cuts given, one or two are possible")
    shared = frozenset(share_inputs)
    unknown = shared - {op.name for op in traced.train.inputs}
    if unknown:
        raise CutError(
            f"share_inputs names {min(unknown)!r}, which is no input of the model",
            hint="its inputs are " + ", ".join(op.name for op in traced.train.inputs),
        )
    train = cut_trace(traced.train, names, traced.paths)
    evaluation = cut_trace(traced.eval, names, traced.paths)
    tied = tied_ends(train, evaluation)
    if tied:
        train, evaluation = (Partition(each.trace, each.ends, tied) for each in (train, evaluation))
    check_partition(train, names, shared)
    check_partition(evaluation, names, shared, owners=train)
    return names, train, evaluation


def cut_trace(trace: Trace, names: Sequence[str], paths: Sequence[str]) -> Partition:
    """Raises `CutError` for an unknown module, and for cuts in the wrong order."""
    ends = [trace.ends[find_call(name, trace, paths)] for name in names]
    if sorted(ends) != ends:
        raise CutError(
            f"cut {names[0]!r} comes after {names[1]!r} in the model",
            hint=f"write cuts = ({names[1]!r}, {names[0]!r})",
        )
    return Partition(trace, ends)


def _assemble(
    traced: TracedModel,
    names: Sequence[str],
    train: Partition,
    evaluation: Partition,
    loss_parameters: Sequence[TensorInfo],
) -> Split:
    owned = _ownership(traced, train, evaluation)
    owned[-1] += loss_parameters
    segments = [
        assemble(NAMES[side], train.parts[side], evaluation.parts[side], infos, longest=traced.longest)
        for side, infos in enumerate(owned)
    ]
    boundaries = [Boundary(names[0], tuple(value_spec(op) for op in train.up))]
    if train.count == 3:
        boundaries.append(Boundary(names[1], tuple(value_spec(op) for op in train.down)))
    return Split(
        head=segments[0],
        body=segments[1],
        tail=segments[2] if train.count == 3 else None,
        boundaries=tuple(boundaries),
        skips=tuple(value_spec(op) for op in train.kept),
        regrouped=regrouped_sums(train),
        notes=traced.notes,
    )


def assemble(
    name: str, train: Part, evaluation: Part, infos: Sequence[TensorInfo], *, longest: int = 0
) -> Segment:
    """A segment with copies of its tensors. Raises `JobError` for what has no portable form.

    `longest`: the length of the longest samples, where lengths are free.
    """
    table = {info.names[0]: place for place, info in enumerate(infos)}
    try:
        document = Document(
            name=name,
            tensors=tuple(tensor_spec(info) for info in infos),
            train=lower(train, table),
            eval=lower(evaluation, table),
        )
        program = Program(document)
        check_program(program, Batches(train=(), eval=(), length=longest))
    except PortableError as error:
        owner = "loss" if name == "loss" else "model"
        raise JobError(f"the {owner} can't be made portable: {error.message}", hint=error.hint) from None
    copies = {
        info.names[0]: info.tensor.detach().clone(memory_format=torch.preserve_format) for info in infos
    }
    return Segment(program, copies)


def _ownership(traced: TracedModel, train: Partition, evaluation: Partition) -> list[list[TensorInfo]]:
    """The tensors of each part, in the model's order. What no operator uses goes to the body."""
    owned: list[list[TensorInfo]] = [[] for _ in train.parts]
    everywhere: dict[str, TensorInfo] = {}
    for trace in (traced.train, traced.eval):
        everywhere |= {op.name: info for op, info in trace.tensors.items()}
    used = [
        {op.name for each in (train, evaluation) for op in each.parts[side].tensors}
        for side in range(train.count)
    ]
    for name, info in everywhere.items():
        sides = [side for side, names in enumerate(used) if name in names]
        for side in sides or ([1] if info.kind != "constant" else []):
            owned[side].append(info)
    return owned
