"""The costs of each operator of a model in training: time forward and backward, and the memory it holds.

The whole model is run as one segment, operator by operator. An operator's backward is the autograd
nodes that it adds: a hook behind each of them tells how long it took, in its place, with caches as warm
or cold as in training. The sums are then set to what whole steps take without any hooks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from spliteasy.graph.operators import ATTENTION_AND_RECURRENCE, CONVOLUTIONS, LINEAR_ALGEBRA
from spliteasy.job.spec import JobSpec
from spliteasy.planning.whole_model import whole_segment
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.export import TracedModel
from spliteasy.training.losses import LossFunction
from spliteasy.training.segment_trainer import SegmentTrainer, backward_from, tensors_of

Numbers = npt.NDArray[np.float64]
Tensors = tuple[Tensor, ...]

KINDS = ("convolution", "matmul", "memory")
"""The kinds of limit on an operator's speed. Devices differ in each on its own."""

BUDGET_S = 20.0
"""About how long the timing may take, where two samples allow it."""
PASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCosts:
    """Per operator of the training trace, in its order: seconds on this machine and bytes, for one step.

    Scaled from `measured_batch` samples to `batch`.
    """

    batch: int
    measured_batch: int
    forward_s: Numbers
    backward_s: Numbers
    kinds: npt.NDArray[np.int64]
    """Index into `KINDS`."""
    saved_first: Numbers
    """Bytes that autograd keeps for the backward, each counted at the first operator that saves them."""
    saved_last: Numbers
    """The same, counted at the last one."""
    working: Numbers
    """Bytes that the operator reads and writes, weights left out."""
    loss_s: float
    apply_s: float
    """The optimizer step and the check of the gradients, for all parameters."""

    @property
    def step_s(self) -> float:
        """Measure a whole step of the model unsplit."""
        return float(self.forward_s.sum() + self.backward_s.sum()) + self.loss_s + self.apply_s


def measure(
    traced: TracedModel,
    spec: JobSpec,
    loss: LossFunction,
    inputs: Tensors,
    targets: Tensors,
    *,
    budget_s: float = BUDGET_S,
) -> OperatorCosts:
    """Train the unsplit model for a few steps of the job, on copies of its weights, and time it.

    A batch too large for the budget is replaced by a smaller one, and the result scaled.
    """
    with states_kept():
        probe = _Probe(traced, spec, loss)
        small = resized(inputs, targets, min(2, spec.batch_size))
        probe.whole_step(*small)
        per_sample_s = sum(probe.whole_step(*small)) / small[0][0].shape[0]
        affordable = int(budget_s / (2 * PASSES + 2) / max(per_sample_s, 1e-9))
        batch = max(min(2, spec.batch_size), min(spec.batch_size, affordable))
        given = resized(inputs, targets, batch)
        probe.look(*given)
        probe.whole_step(*given)
        wholes = [probe.whole_step(*given) for _ in range(PASSES)]
        for _ in range(PASSES):
            probe.timed_pass(*given)
    forward_s, loss_s, backward_s, apply_s = (statistics.median(times) for times in zip(*wholes, strict=True))
    scale = spec.batch_size / batch
    forward, backward = probe.medians()
    backward_of_loss = float(backward[-1])
    forward *= forward_s / forward.sum()
    backward *= backward_s / backward.sum()
    return OperatorCosts(
        batch=spec.batch_size,
        measured_batch=batch,
        forward_s=forward * scale,
        backward_s=backward[:-1] * scale,
        kinds=np.array([_kind(op.target) for op in traced.train.ops], dtype=np.int64),
        saved_first=probe.saved_first * scale,
        saved_last=probe.saved_last * scale,
        working=probe.working * scale,
        loss_s=(loss_s + backward_of_loss) * scale,
        apply_s=apply_s,
    )


def clock() -> Callable[[], float]:
    """This thread's processor time where it computes alone, so that others on the machine don't count."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def resized(inputs: Tensors, targets: Tensors, batch: int) -> tuple[Tensors, Tensors]:
    """Return `batch` samples, by repeating those that there are."""
    rows = torch.arange(batch) % inputs[0].shape[0]
    return tuple(x[rows] for x in inputs), tuple(y[rows] for y in targets)


class _Probe:
    """Runs the model as one segment and notes what its operators do."""

    def __init__(self, traced: TracedModel, spec: JobSpec, loss: LossFunction) -> None:
        self.segment, places = whole_segment(traced)
        self._trainer = SegmentTrainer(self.segment, spec, device="planner", role="model")
        self._loss = loss
        self._places = places
        self._clock = clock()
        count = len(traced.train.ops)
        self._forward: list[Numbers] = []
        self._backward: list[Numbers] = []
        self.saved_first, self.saved_last, self.working = (np.zeros(count) for _ in range(3))

    def whole_step(self, inputs: Tensors, targets: Tensors) -> tuple[float, float, float, float]:
        """Seconds of a step as a device or worker takes it: forward, loss, backward, optimizer."""
        moments = [self._clock()]
        opened = self._trainer.forward(inputs)
        moments.append(self._clock())
        value = self._loss(tensors_of(opened.outputs), targets)
        moments.append(self._clock())
        backward_from(value)
        moments.append(self._clock())
        if self._trainer.finite():
            self._trainer.apply()
        else:
            self._trainer.abort()
        moments.append(self._clock())
        forward, loss, backward, apply = np.diff(moments)
        return float(forward), float(loss), float(backward), float(apply)

    def timed_pass(self, inputs: Tensors, targets: Tensors) -> None:
        """Time every operator's forward and backward once. The last entry of the backward is the loss's."""
        watch = _Watch(self._places, len(self.saved_first))
        outputs = self._run(inputs, watch)
        loss = self._loss(tensors_of(outputs), targets)
        watch.own(loss, len(self.saved_first))
        watch.start()
        backward_from(loss)
        watch.leave()
        for parameter in self.segment.parameters():
            parameter.grad = None
        self._forward.append(watch.forward)
        self._backward.append(watch.backward)

    def medians(self) -> tuple[Numbers, Numbers]:
        return np.median(self._forward, axis=0), np.median(self._backward, axis=0)

    def look(self, inputs: Tensors, targets: Tensors) -> None:
        """Note what operators save, read and write."""
        weights = {_storage(tensor) for tensor in self.segment.tensors().values()}
        places = iter(self._places)
        place = 0
        first: dict[int, tuple[int, int]] = {}
        last: dict[int, int] = {}

        def invoke(call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
            nonlocal place
            place = next(places)
            value = call(*args, **kwargs)
            seen = {_storage(t): t for t in _tensors_in((args, kwargs, value))}
            self.working[place] = sum(t.nbytes for ptr, t in seen.items() if ptr not in weights)
            return value

        def pack(tensor: Tensor) -> Tensor:
            pointer = _storage(tensor)
            if pointer not in weights:
                first.setdefault(pointer, (place, tensor.untyped_storage().nbytes()))
                last[pointer] = place
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = self._run(inputs, invoke)
        for pointer, (where, size) in first.items():
            self.saved_first[where] += size
            self.saved_last[last[pointer]] += size
        del outputs

    def _run(self, inputs: Tensors, invoke: Callable[..., Any]) -> tuple[Any, ...]:
        tensors = list(self.segment.tensors().values())
        return self.segment.program.train(tensors, inputs, invoke=invoke)


class _Watch:
    """Times operators as they are called, and the autograd nodes that each of them added."""

    def __init__(self, places: Sequence[int], count: int) -> None:
        self.forward, self.backward = np.zeros(count), np.zeros(count + 1)
        self._places = iter(places)
        self._clock = clock()
        self._nodes: dict[Node, RemovableHandle] = {}
        self._moment = 0.0

    def __call__(self, call: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        place = next(self._places)
        began = self._clock()
        value = call(*args, **kwargs)
        self.forward[place] = self._clock() - began
        for tensor in _tensors_in(value):
            self.own(tensor, place)
        return value

    def own(self, tensor: Tensor, place: int) -> None:
        """All nodes behind the tensor that nobody owns yet are that place's."""
        todo = [tensor.grad_fn]
        while todo:
            node = todo.pop()
            if node is not None and node not in self._nodes:
                self._nodes[node] = node.register_hook(partial(self._done, place))
                todo.extend(following for following, _ in node.next_functions)

    def start(self) -> None:
        self._moment = self._clock()

    def leave(self) -> None:
        """Take the hooks away: a weight's node lives on."""
        for handle in self._nodes.values():
            handle.remove()

    def _done(self, place: int, *_gradients: object) -> None:
        self.backward[place] += self._clock() - self._moment
        self._moment = self._clock()


def _kind(target: str) -> int:
    if target in CONVOLUTIONS:
        return KINDS.index("convolution")
    if target in LINEAR_ALGEBRA or (target in ATTENTION_AND_RECURRENCE and "embedding" not in target):
        return KINDS.index("matmul")
    return KINDS.index("memory")


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in(value.values())
    elif isinstance(value, Iterable) and not isinstance(value, str):
        for item in value:
            yield from _tensors_in(item)
