"""Read from a traced loss which scores it compares with which labels, and which elements its mean is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spliteasy.graph.document import Document, Node
from spliteasy.graph.operators import is_in_place
from spliteasy.graph.program import Code
from spliteasy.training.losses import IGNORED_CLASS
from spliteasy.training.measures import Classes, Measure, Tensors, YesNo

_CLASS_OPERATORS = frozenset(
    {
        "aten.cross_entropy_loss.default",
        "aten.nll_loss.default",
        "aten.nll_loss_nd.default",
        "aten.nll_loss2d.default",
    }
)
_YES_NO_OPERATORS = {
    "aten.binary_cross_entropy_with_logits.default": 0.0,
    "aten.binary_cross_entropy.default": 0.5,
}
"""The score above which each of them means yes."""

_SCALINGS = frozenset(
    {
        "aten.mul.Tensor",
        "aten.mul.Scalar",
        "aten.div.Tensor",
        "aten.div.Scalar",
        "aten.neg.default",
        "aten.clone.default",
        "aten.alias.default",
        "aten.mean.default",
        "aten.sum.default",
    }
)
"""Operators that multiply a single number by a constant."""

_MEAN = 1
"""ATen's number for reduction="mean"."""


def traced_measure(document: Document, tensors: Sequence[Tensor], outputs: int) -> Measure:
    """Return what can be counted for the loss of this graph, whose first `outputs` inputs are the model's."""
    return _Reader(document, tensors, outputs).measure()


class _Reader:
    def __init__(self, document: Document, tensors: Sequence[Tensor], outputs: int) -> None:
        self._graph = document.train
        self._tensors = tuple(tensors)
        self._outputs = outputs
        self._first = len(self._tensors) + len(self._graph.inputs)
        """The slot of the first node."""
        self._sources = self._trace_sources()
        self._writes = any(is_in_place(node.op) for node in self._graph.nodes)

    def _trace_sources(self) -> list[frozenset[str]]:
        """Return for each slot whether it depends on the model's outputs and on the targets."""
        sources: list[frozenset[str]] = [frozenset()] * len(self._tensors)
        for place in range(len(self._graph.inputs)):
            sources.append(frozenset({"outputs" if place < self._outputs else "targets"}))
        for node in self._graph.nodes:
            sources.append(frozenset().union(*(sources[slot] for slot in _refs_of(node))))
        return sources

    def measure(self) -> Measure:
        classes: dict[tuple[int, int], Classes] = {}
        answers: dict[tuple[int, int], YesNo] = {}
        means: list[Classes] = []
        proportional, opaque = True, False
        for place, node in enumerate(self._graph.nodes):
            if node.op not in _CLASS_OPERATORS and node.op not in _YES_NO_OPERATORS:
                continue
            scores, labels = _ref(node, 0), _ref(node, 1)
            if scores is None or labels is None or "targets" not in self._sources[labels]:
                continue
            readable = self._sources[labels] == {"targets"} and not self._writes
            if node.op in _CLASS_OPERATORS:
                is_mean = _argument(node, 3, "reduction", _MEAN) == _MEAN
                opaque = opaque or (is_mean and not readable)
                if readable:
                    found = self._classes(node, scores, labels, mean=is_mean)
                    classes[scores, labels] = found
                    if is_mean:
                        means.append(found)
                        proportional = proportional and self._is_the_loss(self._first + place)
            elif readable:
                threshold = _YES_NO_OPERATORS[node.op]
                answers[scores, labels] = YesNo(self._of_both(scores), self._of_targets(labels), threshold)
        predictions: dict[tuple[int, int], Classes | YesNo] = {**classes, **answers}
        clear = [found for (scores, _), found in predictions.items() if self._sources[scores] == {"outputs"}]
        return Measure(
            clear[0] if len(predictions) == len(clear) == 1 else None,
            tuple(means),
            proportional=proportional and len(means) <= 1,
            opaque=opaque,
        )

    def _classes(self, node: Node, scores: int, labels: int, *, mean: bool) -> Classes:
        weight = _ref(node, 2, "weight")
        weights = None
        if weight is not None and not self._sources[weight]:
            weights = self._run(weight, (), ())
        return Classes(
            self._of_both(scores),
            self._of_targets(labels),
            ignored=int(_argument(node, 4, "ignore_index", IGNORED_CLASS)),
            weights=weights,
            mean=mean,
        )

    def _is_the_loss(self, slot: int) -> bool:
        """Return whether the graph's result is the value at `slot` times a constant."""
        at = self._graph.results[0]
        while at != slot:
            if at < self._first:
                return False
            node = self._graph.nodes[at - self._first]
            varying = [ref for ref in _refs_of(node) if self._sources[ref]]
            if node.op not in _SCALINGS or len(varying) != 1 or varying[0] != _ref(node, 0):
                return False
            at = varying[0]
        return True

    def _of_both(self, slot: int) -> Callable[[Tensors, Tensors], Tensor]:
        return lambda outputs, targets: self._run(slot, outputs, targets)

    def _of_targets(self, slot: int) -> Callable[[Tensors], Tensor]:
        return lambda targets: self._run(slot, (), targets)

    def _run(self, slot: int, outputs: Tensors, targets: Tensors) -> Tensor:
        """Return the value at `slot`; inputs that it does not depend on may be absent."""
        code = self._code_for(slot)
        absent = torch.empty(0)
        given = outputs or (absent,) * self._outputs
        rest = targets or (absent,) * (len(self._graph.inputs) - self._outputs)
        with torch.no_grad():
            (value,) = code(self._tensors, (*given, *rest))
        assert isinstance(value, Tensor), "an argument of a loss operator"
        return value

    def _code_for(self, slot: int) -> Code:
        """The part of the graph that leads to `slot`, made ready to run."""
        needed = self._needed_for(slot)
        numbers = {place: place for place in range(self._first)}
        nodes: list[Node] = []
        for at in sorted(needed):
            node = self._graph.nodes[at - self._first]
            numbers[at] = self._first + len(nodes)
            args = tuple(_renumbered(arg, numbers) for arg in node.args)
            kwargs = {key: _renumbered(arg, numbers) for key, arg in node.kwargs.items()}
            nodes.append(node.model_copy(update={"args": args, "kwargs": kwargs}))
        graph = self._graph.model_copy(update={"nodes": tuple(nodes), "results": (numbers[slot],)})
        return Code(graph, len(self._tensors))

    def _needed_for(self, slot: int) -> set[int]:
        needed: set[int] = set()
        open_slots = [slot]
        while open_slots:
            at = open_slots.pop()
            if at >= self._first and at not in needed:
                needed.add(at)
                open_slots.extend(_refs_of(self._graph.nodes[at - self._first]))
        return needed


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def _ref(node: Node, place: int, name: str = "") -> int | None:
    """The slot that an argument refers to; None where it is no reference."""
    return next(_slots_in(_argument(node, place, name, None)), None)


def _refs_of(node: Node) -> list[int]:
    return [slot for arg in (*node.args, *node.kwargs.values()) for slot in _slots_in(arg)]


def _slots_in(arg: Any) -> Iterator[int]:
    """The references in an argument as it travels: `{"ref": 7}`, alone or in lists."""
    if isinstance(arg, dict):
        if isinstance(arg.get("ref"), int):
            yield arg["ref"]
    elif isinstance(arg, list | tuple):
        for item in arg:
            yield from _slots_in(item)


def _renumbered(arg: Any, numbers: dict[int, int]) -> Any:
    if isinstance(arg, dict) and "ref" in arg:
        return {"ref": numbers[arg["ref"]]}
    if isinstance(arg, list | tuple):
        return [_renumbered(item, numbers) for item in arg]
    return arg
