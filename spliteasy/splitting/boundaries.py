"""The values that cross when a trace is cut, and the side on which each number is worked out again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spliteasy.splitting.trace import INPUT, TENSOR, Op, Trace, same_number


@dataclass(slots=True)
class Part:
    """One segment of a trace: what it is given, computes and returns.

    `swaps`: numbers of earlier parts, and the ops that work them out again here.
    """

    inputs: list[Op] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    outputs: list[Op] = field(default_factory=list)
    wire: int = 0
    tensors: set[Op] = field(default_factory=set)
    swaps: dict[Op, Op] = field(default_factory=dict)

    @property
    def computes(self) -> bool:
        return any(op.target not in ("getitem", "aten.sym_size.int") for op in self.ops)


class Partition:
    """A trace cut after the ops at `ends` (none, one or two places): one, two or three parts.

    Values flow forward only. A value of the first part that the last one needs is kept, not sent
    (three parts); everything that a later part needs crosses, but for what it can work out again:
    sizes, and tensors made from nothing but sizes and constants.

    `tied`: names of tensors that the first part owns and the last one uses as well. The first part keeps
    each for it as it keeps a value, so that its gradient comes back to the one parameter.
    """

    def __init__(self, trace: Trace, ends: Sequence[int], tied: Collection[str] = ()) -> None:
        self.trace, self.ends, self._tied = trace, tuple(ends), frozenset(tied)
        self.count = len(ends) + 1
        self._moved: dict[Op, int] = {}
        self._move()
        self.parts = [Part() for _ in range(self.count)]
        self._foreign: list[set[Op]] = [set() for _ in range(self.count)]
        self._numbers: list[set[Op]] = [set() for _ in range(self.count)]
        self._copies: list[set[Op]] = [set() for _ in range(self.count)]
        self._gather()
        self._connect()

    @property
    def up(self) -> list[Op]:
        return self.parts[1].inputs

    @property
    def down(self) -> list[Op]:
        return self.parts[1].outputs if self.count == 3 else []

    @property
    def kept(self) -> list[Op]:
        return self.parts[0].outputs[self.parts[0].wire :]

    def side(self, op: Op) -> int:
        """Return the part that computes the op."""
        while op.target == "getitem":
            op = op.args[0]
        if op in self._moved:
            return self._moved[op]
        return 0 if op.target == INPUT else bisect_left(self.ends, op.index)

    def _move(self) -> None:
        """Move what depends on weights alone to the first part that needs it, because weights do
        not travel."""
        for op in reversed(self.trace.users):
            sides = [self.side(user) for user in self.trace.users[op] if user in self.trace.live]
            if op in self.trace.outputs:
                sides.append(self.count - 1)
            if sides:
                self._moved[op] = min(sides)

    def _gather(self) -> None:
        """Sort the live ops into parts, and note what each part needs of others."""
        for op in self.trace.ops:
            if op in self.trace.live:
                side = self.side(op)
                self.parts[side].ops.append(op)
                for used in op.uses:
                    self._need(used, side)
        for output in self.trace.outputs:
            self._need(output, self.count - 1)

    def _need(self, op: Op, side: int) -> None:
        if op.target == TENSOR and side == 2 and op.name in self._tied:
            self.parts[0].tensors.add(op)
            self._foreign[2].add(op)
        elif op.target == TENSOR:
            self.parts[side].tensors.add(op)
        elif self.side(op) == side:
            return
        elif op.is_number:
            self._numbers[side].add(op)
        elif op.constant:
            if op not in self._copies[side]:
                self._copies[side].add(op)
                for used in op.uses:
                    self._need(used, side)
        else:
            self._foreign[side].add(op)

    def _connect(self) -> None:
        """Settle what goes over each boundary, numbers last: they cross only if no tensor shows them."""
        head, last = self.parts[0], self.parts[-1]
        head.inputs = list(self.trace.inputs)
        last.outputs, last.wire = list(self.trace.outputs), len(self.trace.outputs)
        if self.count == 1:
            return
        body = self.parts[1]
        body.inputs = self._ordered(self._foreign[1])
        body.inputs += self._work_out(1, body.inputs)
        kept: list[Op] = []
        if self.count == 3:
            down = self._ordered(op for op in self._foreign[2] if self.side(op) == 1)
            kept = self._ordered(op for op in self._foreign[2] if self.side(op) == 0)
            for number in self._work_out(2, [*down, *kept]):
                (down if self.side(number) == 1 else kept).append(number)
            body.outputs, last.inputs = down, [*down, *kept]
        body.wire = len(body.outputs)
        head.outputs, head.wire = [*body.inputs, *kept], len(body.inputs)
        for side in range(1, self.count):
            copies = sorted(self._copies[side], key=lambda op: op.index)
            part = self.parts[side]
            part.ops = [*(op for op in part.swaps.values() if op not in part.inputs), *copies, *part.ops]

    def _work_out(self, side: int, given: Sequence[Op]) -> list[Op]:
        """Numbers that this part needs: read off a tensor it is given, or calculated, or (returned) sent."""
        part, sent = self.parts[side], []
        for number in sorted(self._numbers[side], key=lambda op: op.index):
            sent += self._find_number(number, part, given)
        return self._ordered(dict.fromkeys(sent))

    def _find_number(self, number: Op, part: Part, given: Sequence[Op]) -> list[Op]:
        if number in part.swaps:
            return []
        shown = _shown_in(number, given)
        if shown is not None:
            part.swaps[number] = Op(number.name, "aten.sym_size.int", number.value, shown)
            return []
        if number.target.startswith("int."):
            sent = [op for used in number.uses for op in self._find_number(used, part, given)]
            part.swaps[number] = Op(number.name, number.target, number.value, number.args, number.kwargs)
            return sent
        return [number]

    def _ordered(self, ops: Iterable[Op]) -> list[Op]:
        """Inputs first, then tensors, then what is computed."""
        ranks = {op: rank for rank, op in enumerate((*self.trace.inputs, *self.trace.tensors))}
        return sorted(ops, key=lambda op: (op.index, ranks.get(op, 0)))


def _shown_in(number: Op, given: Sequence[Op]) -> tuple[Op, int] | None:
    """A tensor and the dimension of it that has this size."""
    for op in given:
        if isinstance(op.value, Tensor):
            for dim, size in enumerate(op.value.shape):
                if not isinstance(size, int) and same_number(size, number.value):
                    return op, dim
    return None
