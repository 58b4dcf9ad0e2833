"""The rules by which a cut can't be right, with what to do instead, and the gradients that a split adds in
another order."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from spliteasy.errors import CutError
from spliteasy.graph.document import DTYPE_NAMES
from spliteasy.splitting.boundaries import Partition
from spliteasy.splitting.places import name_of_call
from spliteasy.splitting.trace import INPUT, TENSOR, Op, Trace

_PARTS = ("head", "body", "tail")


def check_partition(
    partition: Partition,
    names: Sequence[str],
    shared: Collection[str] = (),
    *,
    owners: Partition | None = None,
) -> None:
    """Raises `CutError` for an empty part, a tensor that two parts change, an input or weight that crosses.

    `owners`: the same cut in the other mode, whose parts may hold the tensors as well.
    """
    _check_not_empty(partition, names)
    _check_tensors(partition, names, owners)
    _check_weights(partition, names)
    _check_kinds(partition, names)
    crossing = [op for op in raw_crossing(partition) if not origins(op) <= set(shared)]
    if crossing:
        which = ", ".join(sorted(set().union(*(origins(op) for op in crossing))))
        after = places_without_inputs(partition.trace, partition.ends, shared)
        hint = f"share_inputs=({which!r},) allows it (a job names it as its model.inputs do)"
        raise CutError(
            f"cut after {names[0]!r}: the model's input {which} would leave the device",
            hint=f"cut after {' or '.join(map(repr, after))}, or {hint}" if after else hint,
        )


def _check_not_empty(partition: Partition, names: Sequence[str]) -> None:
    for side, part in enumerate(partition.parts):
        if part.computes:
            continue
        place = f"after {names[side - 1]!r}" if side else f"before {names[0]!r}"
        if 0 < side < len(names):
            place = f"between {names[side - 1]!r} and {names[side]!r}"
        raise CutError(f"the {_PARTS[side]} would be empty: nothing runs {place}", hint="move the cut")


def _check_weights(partition: Partition, names: Sequence[str]) -> None:
    for op in partition.up:
        if op.movable:
            which = ", ".join(sorted(weights_of(op)))
            raise CutError(
                f"cut after {', '.join(map(repr, names))}: {op.name}, computed from {which} alone, is used by"
                " the head and on the server: weights of the head would leave the device",
                hint="move the cuts so that all its uses are in one segment",
            )


def _check_kinds(partition: Partition, names: Sequence[str]) -> None:
    for op in (*partition.up, *partition.down, *partition.kept):
        if isinstance(op.value, Tensor) and op.value.dtype not in DTYPE_NAMES:
            raise CutError(
                f"cut after {', '.join(map(repr, names))}: {op.name} would cross as {op.value.dtype},"
                " which has no form on the wire",
                hint="move the cuts so that complex numbers stay within a segment, or let them cross as"
                " torch.view_as_real",
            )


def weights_of(op: Op) -> set[str]:
    """The parameters and buffers that a value is computed from."""
    if op.target == TENSOR:
        return {op.name}
    return set().union(*(weights_of(used) for used in op.uses))


def _check_tensors(partition: Partition, names: Sequence[str], owners: Partition | None) -> None:
    sides = _sides(partition, *((owners,) if owners else ()))
    written = {op.name for op in partition.trace.written}
    for op, info in partition.trace.tensors.items():
        where = sorted(sides.get(op.name, ()))
        if len(where) > 1 and (info.tensor.requires_grad or op.name in written):
            both = " and ".join(_PARTS[side] for side in where)
            raise CutError(
                f"cut after {', '.join(map(repr, names))}:"
                f" {info.kind} {' = '.join(info.names)} is used by {both}",
                hint=_way_together(op.name, partition.trace),
            )


def _way_together(tensor: str, trace: Trace) -> str:
    """Say how the uses of a tensor come into one segment."""
    called = [path for path, number in trace.ends if number == 2 and tensor.startswith(f"{path}.")]
    if called:
        return (
            f"module {called[0]} is called several times: call it once, on its inputs joined by torch.cat,"
            " and cut the result by slices"
        )
    return "what training changes belongs to one segment: move the cuts so that its uses meet"


def tied_ends(train: Partition, evaluation: Partition) -> set[str]:
    """Parameters that head and tail use and the body does not, in some mode: both ends are on the device."""
    sides = _sides(train, evaluation)
    kinds = {op.name: info.kind for each in (train, evaluation) for op, info in each.trace.tensors.items()}
    return {name for name, used in sides.items() if used == {0, 2} and kinds[name] == "parameter"}


def _sides(*partitions: Partition) -> dict[str, set[int]]:
    """The parts that hold each tensor."""
    sides: dict[str, set[int]] = {}
    for each in partitions:
        for side, part in enumerate(each.parts):
            for op in part.tensors:
                sides.setdefault(op.name, set()).add(side)
    return sides


def raw_crossing(partition: Partition) -> list[Op]:
    """Model inputs, whole or rearranged, that would travel."""
    return [op for op in (*partition.up, *partition.down) if op.raw]


def origins(op: Op) -> set[str]:
    """The model inputs that a raw value shows."""
    if op.target == INPUT:
        return {op.name}
    return set().union(*(origins(used) for used in _first(op) if used.raw))


def _first(op: Op) -> list[Op]:
    first = op.args[0]
    return [first] if isinstance(first, Op) else [item for item in first if isinstance(item, Op)]


def places_without_inputs(
    trace: Trace, ends: Sequence[int], shared: Collection[str], most: int = 3
) -> list[str]:
    """The next places for the first cut where no input would cross."""
    found: list[str] = []
    tried: set[int] = set()
    for call, end in trace.ends.items():
        if end <= ends[0] or end >= (ends[1] if len(ends) > 1 else len(trace.ops) - 1) or end in tried:
            continue
        tried.add(end)
        crossing = raw_crossing(Partition(trace, (end, *ends[1:])))
        if all(origins(op) <= set(shared) for op in crossing):
            found.append(name_of_call(call, trace.ends))
            if len(found) == most:
                break
    return found


def regrouped_sums(partition: Partition) -> tuple[str, ...]:
    """Values whose gradient has three or more terms that the split adds in another order.

    Autograd adds the terms of a value's gradient from its last use to its first. A value that the
    head keeps for the tail and sends to the body gets tail + (sum over the body) instead of
    ((tail + body's last) + …): the same for one use in the body, another order for more.
    """
    if partition.count < 3:
        return ()
    kept = {op for op in partition.kept if isinstance(op.value, Tensor) and op.needs_grad}
    twice = [op for op in partition.up if op in kept and _terms(partition, op, 1) > 1]
    return tuple(op.name for op in twice)


def _terms(partition: Partition, value: Op, side: int) -> int:
    """Return how many gradient terms the part gives the value."""
    return sum(used is value for op in partition.parts[side].ops if op.grad for used in op.uses)
