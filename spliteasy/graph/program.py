"""A program: a portable graph made ready to run. Immutable, stateless, loaded once, shared by threads.

It holds no tensors: it is called with the segment's tensors, in the order of the table, and the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph.document import Document, Graph, Ref, Value
from spliteasy.graph.encoding import decode_argument
from spliteasy.graph.index_checks import Check, check_of
from spliteasy.graph.operators import (
    BATCH_NORM,
    PLACEMENT,
    is_in_place,
    is_random,
    makes_from_nothing,
    operator_of,
    uses_statistics,
    written_by,
)


class _Step(NamedTuple):
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: bool
    placed: bool
    """The step makes a tensor from nothing, so that it must be given the device."""
    writes: tuple[tuple[int, str], ...]
    """The arguments that the step writes into."""
    check: Check | None
    """A check of the places among the step's values, which kernels of accelerators do not survive."""
    frees: tuple[int, ...]


class _WithRefs(list[Any]):
    """A list argument that holds references, so that it must be built again at each call."""


Invoke = Callable[[Callable[..., Any], list[Any], dict[str, Any]], Any]
"""A function that calls a step. A check may look before and after the call."""


def _plainly(call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
    return call(*args, **kwargs)


class Code:
    """One graph, compiled to a straight line of calls."""

    def __init__(self, graph: Graph, tensors: int) -> None:
        """Raises `PortableError` for unknown operators, dangling references and unknown argument forms."""
        self.graph = graph
        self._first = tensors + len(graph.inputs)
        self._tensors = tensors
        self.random = False
        self.stateful = False
        """True where a run may change the segment's tensors."""
        self.batch_norm = False
        """True where the program normalises by statistics over the batch."""
        steps = [self._compile(place) for place in range(len(graph.nodes))]
        for result in graph.results:
            if result >= self._first + len(steps):
                raise PortableError(f"an output refers to value {result}, which does not exist")
        self.steps = tuple(self._with_frees(steps))

    def _compile(self, place: int) -> _Step:
        node, limit = self.graph.nodes[place], self._first + place
        try:
            call = operator_of(node.op)
            args = tuple(_checked(decode_argument(arg), limit) for arg in node.args)
            kwargs = {key: _checked(decode_argument(arg), limit) for key, arg in node.kwargs.items()}
        except PortableError as error:
            raise PortableError(f"node {place} ({node.op[:60]}): {error.message}") from None
        if PLACEMENT & kwargs.keys():
            raise PortableError(f"node {place} ({node.op}) chooses its own device")
        self.random = self.random or is_random(node.op, args, kwargs)
        statistics = uses_statistics(node.op, args)
        self.stateful = self.stateful or statistics or is_in_place(node.op)
        self.batch_norm = self.batch_norm or (statistics and node.op == BATCH_NORM)
        placed, writes = makes_from_nothing(node.op), written_by(node.op, args)
        return _Step(call, args, kwargs, node.grad, placed, writes, check_of(node.op), ())

    def _with_frees(self, steps: list[_Step]) -> Iterable[_Step]:
        """Each step drops the values that it is the last to use, as Python would drop them."""
        last: dict[int, int] = {}
        for place, step in enumerate(steps):
            last[self._first + place] = place
            for slot in _slots((*step.args, *step.kwargs.values())):
                last[slot] = place
        frees: dict[int, list[int]] = {}
        for slot in last.keys() - set(self.graph.results):
            frees.setdefault(last[slot], []).append(slot)
        return (step._replace(frees=tuple(frees.get(place, ()))) for place, step in enumerate(steps))

    def __call__(
        self,
        tensors: Sequence[Tensor],
        inputs: Sequence[Value],
        device: str = "cpu",
        invoke: Invoke = _plainly,
        *,
        frozen: Container[int] = (),
    ) -> tuple[Value, ...]:
        """Run on the device where the tensors and inputs lie. Errors of the operators pass through.

        Raises `PortableError` before a step that would write into a storage at one of the addresses `frozen`,
        and `DataError` before one that an accelerator would be lost with.
        """
        if len(tensors) != self._tensors or len(inputs) != len(self.graph.inputs):
            raise PortableError(
                f"called with {len(tensors)} tensors and {len(inputs)} inputs,"
                f" expected {self._tensors} and {len(self.graph.inputs)}"
            )
        slots: list[Any] = [*tensors, *inputs]
        kernels_check = device in ("cpu", "meta")
        for step in self.steps:
            args = [_filled(arg, slots) for arg in step.args]
            kwargs = {key: _filled(arg, slots) for key, arg in step.kwargs.items()}
            if step.placed:
                kwargs["device"] = device
            if step.check is not None and not kernels_check:
                step.check(*args, **kwargs)
            if frozen:
                for written in targets(step.writes, args, kwargs):
                    if written.untyped_storage().data_ptr() in frozen:
                        raise PortableError("a step writes into a tensor that training does not change")
            if step.grad:
                value = invoke(step.call, args, kwargs)
            else:
                with torch.no_grad():
                    value = invoke(step.call, args, kwargs)
            slots.append(value)
            for slot in step.frees:
                slots[slot] = None
        return tuple(slots[result] for result in self.graph.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """Samples that a program will be run on at a time, in training and in evaluation."""

    train: tuple[int, ...]
    eval: tuple[int, ...]
    length: int = 0
    """The length of the longest sample, where lengths are free; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The memory and the computing that a run takes at the largest batch of the longest samples; 0 where
    nothing is known.

    The bytes are those beside the segment's own tensors: in training those of all values between, which a
    backward needs; in evaluation the most at a time.
    """

    train_bytes: int = 0
    eval_bytes: int = 0
    train_flops: int = 0
    """Floating-point operations of the forward in training, estimated. The backward takes about twice as
    many."""
    eval_flops: int = 0


class Program:
    """The code of a segment for training and for evaluation, over one table of tensors."""

    def __init__(self, document: Document, device: str = "cpu") -> None:
        """Raises `PortableError` as `Code` does."""
        self.document = document
        self.device = device
        self.train = Code(document.train, len(document.tensors))
        self.eval = Code(document.eval, len(document.tensors))
        self.costs = Costs()
        """The costs of a run, as far as it was checked at the job's batches (`check_program`)."""
        self.written = frozenset(spec.name for spec in document.tensors)
        """The tensors that a run may write into: all, until the program was checked."""

    def on(self, device: str) -> Program:
        """Return the same program for another device."""
        twin = copy(self)
        twin.device = device
        return twin

    def code(self, training: bool) -> Code:
        return self.train if training else self.eval

    def __call__(
        self,
        tensors: Sequence[Tensor],
        inputs: Sequence[Value],
        *,
        training: bool,
        frozen: Container[int] = (),
    ) -> tuple[Value, ...]:
        """Outputs of the graph for that mode. Buffers among `tensors` change in place, as the model's do, but
        never what lies at the addresses `frozen`.
        """
        return self.code(training)(tensors, inputs, self.device, frozen=frozen)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self


def targets(
    writes: Iterable[tuple[int, str]], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterable[Tensor]:
    """Return the tensors among the arguments of a call that it writes into."""
    for place, name in writes:
        given = args[place] if place < len(args) else kwargs.get(name)
        if isinstance(given, Tensor):
            yield given


def _checked(arg: Any, limit: int) -> Any:
    if isinstance(arg, Ref):
        if arg.slot >= limit:
            raise PortableError(f"refers to value {arg.slot}, which is not computed before it")
        return arg
    if isinstance(arg, list):
        items = [_checked(item, limit) for item in arg]
        return _WithRefs(items) if any(isinstance(item, Ref | _WithRefs) for item in items) else items
    return arg


def _filled(arg: Any, slots: list[Any]) -> Any:
    kind = type(arg)
    if kind is Ref:
        return slots[arg.slot]
    if kind is _WithRefs:
        return [_filled(item, slots) for item in arg]
    return arg


def _slots(args: Iterable[Any]) -> Iterable[int]:
    for arg in args:
        if isinstance(arg, Ref):
            yield arg.slot
        elif isinstance(arg, _WithRefs):
            yield from _slots(arg)
