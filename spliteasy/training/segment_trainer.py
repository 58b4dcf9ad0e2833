"""A segment in training: forward, backward, one optimizer step, and its whole state as named tensors.

Device and worker run the same code, and so does the check against plain PyTorch. Nothing here knows of
messages or stores. A trainer belongs to one thread at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.graph.segment import Segment
from spliteasy.job.spec import JobSpec
from spliteasy.runtime.randomness import Key, Seed, drawing_on, seed_of, state_of
from spliteasy.training.digest import strong_digest
from spliteasy.training.optim import (
    build_optimizer,
    clip_gradients,
    fresh_state,
    set_learning_rate,
    state_fields,
)

Values = tuple[Tensor | int, ...]
Gradients = tuple[Tensor | None, ...]
STEP_KEY = "trainer/step"
BASE_KEY = "trainer/base"
"""Names the frozen tensors that are not in a state: a digest over them."""
REBASES_KEY = "trainer/rebases"
AHEAD_KEY = "trainer/ahead"
OPTIMIZER_PREFIX = "optimizer/"
MODEL_PREFIX = "model/"
GRADIENT_PREFIX = "gradient/"
ACCUMULATED_PREFIX = "accumulated/"
AVERAGE_PREFIX = "average/"
COUNTER_FIELD = "step"
_OF_WEIGHTS = (OPTIMIZER_PREFIX, ACCUMULATED_PREFIX, AVERAGE_PREFIX)
"""Begin the names of what a state has of each weight beside it."""


class NotFinite(ArithmeticError):
    """A gradient of the step is NaN or infinite; nothing was applied."""


@dataclass(frozen=True, slots=True)
class OpenForward:
    """A forward whose backward has not run: its leaves, outputs, and the buffers as they were before."""

    inputs: Values
    outputs: Values


def generator_seed(spec: JobSpec, device: str, role: str, step: int, micro: int, *, key: Key | None) -> Seed:
    """The beginning of torch's generator for a segment's forward of a micro-batch.

    It follows from the device's `key` for head and tail, and from the job's seed for the body. The one place
    that says where random layers get their numbers: for training, and for the plain program that it is
    compared with.
    """
    if key is not None:
        return key.at("mask", role, step, micro)
    return seed_of(spec.seed, device, role, step, micro)


def generator_state(
    spec: JobSpec, device: str, role: str, step: int, micro: int, *, key: Key | None
) -> Tensor:
    """The state of the CPU's generator where `generator_seed` says that it begins."""
    return state_of(generator_seed(spec, device, role, step, micro, key=key))


class SegmentTrainer:
    """One segment's weights, buffers and optimizer at a step.

    `step` counts the steps taken: batches that were trained on, and beside them steps at which it went on
    from the mean of a round (`rebases`). A batch is one forward and one backward for each micro-batch, both
    in order, and `apply`, which lets the optimizer step; where the job accumulates, after as many batches as
    it says. From the first forward to `apply` (or `abort`) the batch-norm buffers are ahead of `step`; a
    first forward computed again, or `abort`, puts them back.
    """

    def __init__(
        self, segment: Segment, spec: JobSpec, *, device: str, role: str, key: Key | None = None
    ) -> None:
        """`key`: where random operators begin, on a device; a body's begin where the job's seed says."""
        self.segment = segment
        self.step = 0
        self.rebases = 0
        self.ahead = 0
        """Steps by which the schedule of the learning rate is ahead of `taken`: other devices took them."""
        self.held: dict[str, Tensor] = {}
        """Gradients of the last step that were kept in place of being applied (`hold`), by weight."""
        self._spec = spec
        self._seed_at = partial(generator_seed, spec, device, role, key=key)
        self._parameters = dict(segment.named_parameters())
        self._optimizer = build_optimizer(spec.optimizer, self._parameters.items())
        self._optimizer_fields = state_fields(spec.optimizer)
        self._trainable = [p for p in self._parameters.values() if p.requires_grad]
        self._buffers = {
            name: buffer for name, buffer in segment.named_buffers() if name not in segment.frozen_names()
        }
        """Those that nobody shares with others."""
        self._changing = _changing_buffers(segment, spec)
        self._buffers_before: dict[str, Tensor] | None = None
        self._accumulated: dict[str, Tensor] = {}
        """The gradients of the batches since the optimizer's last step, where the job accumulates."""
        self._average: dict[str, Tensor] = {}
        """The moving average of each trainable weight, once the optimizer has stepped, where the job asks."""
        segment.train()

    @property
    def trainable(self) -> bool:
        return bool(self._trainable)

    @property
    def taken(self) -> int:
        """Return how many batches were trained on: what their order and random layers follow."""
        return self.step - self.rebases

    @property
    def fixed(self) -> bool:
        """Return whether training changes nothing in the segment, so that any step can be computed at any
        time."""
        return not self.trainable and not self.segment.stateful

    @property
    def eval_inputs(self) -> tuple[ValueSpec, ...]:
        """The values that `evaluate` takes."""
        return self.segment.program.document.eval.inputs

    @property
    def eval_wire(self) -> int:
        """The number of values of `evaluate`, counted from the first, that go over the wire."""
        return self.segment.program.document.eval.wire

    def forward(self, values: Sequence[Tensor | int], *, micro: int = 0) -> OpenForward:
        """Run the training graph for step + 1. Floating tensors that can carry a gradient become leaves.

        The forward of micro-batch 0 starts the step over; the others need those before them.
        """
        if micro == 0:
            self.abort()
            self._buffers_before = {name: buffer.clone() for name, buffer in self._buffers.items()}
        return self._forward(values, self.taken + 1, micro)

    def forward_ahead(self, values: Sequence[Tensor | int], *, step: int, micro: int) -> OpenForward:
        """Return what `forward` will give at optimizer step `step`, of a `fixed` segment.

        The open step is not touched.
        """
        assert self.fixed
        return self._forward(values, step, micro)

    def _forward(self, values: Sequence[Tensor | int], step: int, micro: int) -> OpenForward:
        inputs = tuple(
            value.detach().requires_grad_(spec.needs_grad) if isinstance(value, Tensor) else value
            for value, spec in zip(values, self.segment.input_values, strict=True)
        )
        with self._drawing(step, micro):
            outputs = self.segment.forward(*inputs)
        return OpenForward(inputs, outputs)

    def _drawing(self, step: int, micro: int) -> AbstractContextManager[None]:
        """Let random layers draw the numbers of that micro-batch, while it is entered."""
        if not self.segment.has_random:
            return nullcontext()
        return drawing_on(self.segment.processor, self._seed_at(step, micro))

    def backward(self, opened: OpenForward, gradients: Sequence[Tensor | None]) -> Gradients:
        """Accumulate the weights' gradients; returns those of the inputs (None where there is none).

        `gradients` belong to the outputs, None where an output has none.
        """
        pairs = [
            (output, gradient)
            for output, gradient in zip(opened.outputs, gradients, strict=True)
            if gradient is not None and isinstance(output, Tensor) and output.requires_grad
        ]
        if pairs:
            torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return tuple(v.grad if isinstance(v, Tensor) else None for v in opened.inputs)

    def finite(self) -> bool:
        """Return whether every gradient that `apply` would use, and every buffer that it would keep, is a
        number."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        return all_finite(gradients) and self.spoiled_buffer() is None

    def not_finite(self) -> str | None:
        """Say for a person what of the open step is NaN or infinite, or None where all is finite."""
        for name, parameter in self._parameters.items():
            if parameter.grad is not None and not all_finite([parameter.grad]):
                return f"the gradient of {name}"
        return self.spoiled_buffer()

    def spoiled_buffer(self) -> str | None:
        """A buffer that the open step's forwards made NaN or infinite, for a person; None: there is none.

        Buffers that were so before, such as a causal mask, are as the model wants them.
        """
        for name, before in (self._buffers_before or {}).items():
            now = self._buffers[name]
            if now.is_floating_point() and not all_finite([now]) and all_finite([before]):
                return f"the buffer {name} (running statistics)"
        return None

    def apply(self) -> None:
        """Take the optimizer step, or keep the gradients for it where the job adds up more batches first.

        The caller has looked whether the gradients are `finite`.
        """
        batches, window = self.taken + 1, self._spec.accumulate
        if batches % window:
            pairs = ((name, parameter.grad) for name, parameter in self._parameters.items())
            self._accumulated = {name: gradient for name, gradient in pairs if gradient is not None}
        elif self._optimizer is not None:
            clip_gradients(self._trainable, self._spec.clip)
            set_learning_rate(self._optimizer, self._spec, batches // window + self.ahead)
            self._optimizer.step()
            self._accumulated = {}
            self._average_weights()
        for parameter in self._trainable:
            parameter.grad = None
        self.step += 1
        self._buffers_before = None

    @torch.no_grad()
    def _average_weights(self) -> None:
        decay = self._spec.optimizer.ema
        if decay is None:
            return
        for name, parameter in self._parameters.items():
            if not parameter.requires_grad:
                continue
            if name in self._average:
                self._average[name].lerp_(parameter, 1 - decay)
            else:
                self._average[name] = parameter.detach().clone()

    def hold(self) -> None:
        """Let the step pass without the optimizer: its gradients are kept, and buffers are as it left them.

        The caller has looked whether they are `finite`.
        """
        self.held = {
            name: parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        for parameter in self._trainable:
            parameter.grad = None
        self.step += 1
        self._buffers_before = None

    @torch.no_grad()
    def apply_given(
        self, gradients: Mapping[str, Tensor], buffers: Mapping[str, Tensor], *, scheduled: int
    ) -> None:
        """Take an optimizer step with these gradients, and take over these buffers.

        `scheduled`: the steps that the schedule of the learning rate goes on from.
        """
        self.abort()
        for name, gradient in gradients.items():
            self._parameters[name].grad = _beside(self._parameters[name], gradient)
        for name, buffer in buffers.items():
            self._buffers[name].copy_(buffer)
        self.ahead = scheduled - self.taken
        self.apply()

    def buffer_names(self) -> frozenset[str]:
        """Return the buffers that a state has, by their names in it."""
        kept = self.segment.state_dict()
        return frozenset(MODEL_PREFIX + name for name in self._buffers if name in kept)

    def skip(self) -> None:
        """Let a step pass without effect: weights, optimizer and buffers stay as they are."""
        self.abort()
        self.held = {}
        self.step += 1

    def rebase(self, state: Mapping[str, Tensor] | None, *, scheduled: int | None = None) -> None:
        """Take a step that trains nothing, at the end of a round: go on from `state`, where there is one.

        `state` is as `snapshot` gives it, of any step. Raises ValueError where it is not this segment's.
        `scheduled`: where the schedule goes on from, if that is not this segment's own steps.
        """
        self.abort()
        ahead = 0 if scheduled is None else scheduled - self.taken
        step, rebases = self.step + 1, self.rebases + 1
        if state is not None:
            numbers = {STEP_KEY: torch.tensor(step), REBASES_KEY: torch.tensor(rebases)}
            self.load_state({**state, **numbers}, step=step)
        self.step, self.rebases, self.ahead = step, rebases, ahead
        self.held = {}

    def fixed_names(self) -> frozenset[str]:
        """Return the weights that training does not change, by their names in `state`."""
        return frozenset(MODEL_PREFIX + name for name, p in self._parameters.items() if not p.requires_grad)

    def abort(self) -> None:
        """Forget an open forward: gradients and buffers are what they were before it."""
        for name, parameter in self._parameters.items():
            kept = self._accumulated.get(name)
            parameter.grad = None if kept is None else kept.clone()
        if self._buffers_before is not None:
            with torch.no_grad():
                for name, buffer in self._buffers.items():
                    buffer.copy_(self._buffers_before[name])
            self._buffers_before = None

    @torch.no_grad()
    def evaluate(self, values: Sequence[Tensor | int]) -> Values:
        """Run the evaluation graph on the state after `step`, with averaged weights where there are some.

        An open forward is neither seen nor touched.
        """
        self.segment.eval()
        try:
            with self._in_place({**self._average, **(self._buffers_before or {})}):
                return self.segment.forward(*values)
        finally:
            self.segment.train()

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights and buffers as `evaluate` uses them."""
        with self._in_place(self._average):
            return {name: tensor.detach().clone() for name, tensor in self.segment.state_dict().items()}

    @contextmanager
    def _in_place(self, others: Mapping[str, Tensor]) -> Iterator[None]:
        """Put other values in the place of tensors of the segment, while it is entered."""
        own = {**self._parameters, **self._buffers}
        kept = {name: own[name].data for name in others}
        try:
            for name, value in others.items():
                own[name].data = value
            yield
        finally:
            for name, value in kept.items():
                own[name].data = value

    def state(self) -> dict[str, Tensor]:
        """Weights, buffers and optimizer state after `step`, by name: live tensors, not copies.

        What the segment shares with others is left out; a digest stands for it.
        """
        frozen = self.segment.frozen_names()
        state = {
            MODEL_PREFIX + name: tensor.detach()
            for name, tensor in self.segment.state_dict().items()
            if name not in frozen
        }
        if frozen:
            state[BASE_KEY] = self._base(frozen & frozenset(self.segment.state_dict()))
        for name, parameter in self._parameters.items():
            for key, value in self._optimizer_state(parameter).items():
                if isinstance(value, Tensor):
                    state[f"{OPTIMIZER_PREFIX}{name}/{key}"] = value
                elif value is not None:
                    raise JobError(
                        f"the optimizer keeps {key} of {name} as a {type(value).__name__}, which a snapshot "
                        "can't hold",
                        hint="use an optimizer whose state is tensors: sgd, adam or adamw",
                    )
        state |= {GRADIENT_PREFIX + name: gradient for name, gradient in self.held.items()}
        state |= {ACCUMULATED_PREFIX + name: gradient for name, gradient in self._accumulated.items()}
        state |= {AVERAGE_PREFIX + name: average for name, average in self._average.items()}
        state[STEP_KEY] = torch.tensor(self.step, dtype=torch.int64)
        if self.rebases:
            state[REBASES_KEY] = torch.tensor(self.rebases, dtype=torch.int64)
        if self.ahead:
            state[AHEAD_KEY] = torch.tensor(self.ahead, dtype=torch.int64)
        return state

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of `state`, as it is between steps: an open forward's buffers are not in it."""
        copy = {name: tensor.clone() for name, tensor in self.state().items()}
        for name, buffer in (self._buffers_before or {}).items():
            copy[MODEL_PREFIX + name] = buffer.clone()
        return copy

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor], *, step: int) -> None:
        """Take over a state written by `snapshot`; raises ValueError where it is not this segment's.

        What another kind of optimizer kept, in another version of the job, is left out. A tensor that is
        frozen here, and was trained by another version, becomes this segment's own. What was frozen there has
        to have the same bits here.
        """
        self.abort()
        if int(state[STEP_KEY]) != step:
            raise ValueError(f"the state is of step {int(state[STEP_KEY])}, not of step {step}")
        given, own = model_tensors(state), self.segment.state_dict()
        absent = frozenset(own) - frozenset(given) if BASE_KEY in state else frozenset()
        if absent and not torch.equal(self._base(absent), state[BASE_KEY]):
            raise ValueError("the state goes with other frozen tensors than the segment has")
        if (why := misfit({n: t for n, t in own.items() if n not in absent}, given)) is not None:
            raise ValueError(f"the state is not the segment's: {why}")
        self._unshare(given)
        for name, tensor in self.segment.state_dict().items():
            if name in given and name not in self.segment.frozen_names():
                tensor.copy_(given[name])
        self._load_optimizer(state)
        self._accumulated = self._kept(state, ACCUMULATED_PREFIX) if self._spec.accumulate > 1 else {}
        self._average = self._kept(state, AVERAGE_PREFIX) if self._spec.optimizer.ema is not None else {}
        self.held = self._kept(state, GRADIENT_PREFIX)
        self.step = step
        self.rebases = int(state[REBASES_KEY]) if REBASES_KEY in state else 0
        self.ahead = int(state[AHEAD_KEY]) if AHEAD_KEY in state else 0
        if not self.rebases:  # a mean may bring the count of a device that took more steps
            self._check_step_count()

    def _base(self, names: Iterable[str]) -> Tensor:
        """Return a digest of what those tensors of the segment are, as a tensor."""
        known = {
            name: self.segment.frozen[spec.name].digest
            for spec in self.segment.program.document.tensors
            if spec.name in self.segment.frozen
            for name in spec.names
        }
        own = self.segment.state_dict()
        lines = [f"{name} {known.get(name) or strong_digest(own[name])}" for name in sorted(names)]
        hasher = hashlib.blake2b("\n".join(lines).encode(), digest_size=32)
        return torch.frombuffer(bytearray(hasher.digest()), dtype=torch.uint8)

    def _unshare(self, given: Mapping[str, Tensor]) -> None:
        """Make a frozen tensor the segment's own where it is given with other bits."""
        for name, each in list(self.segment.frozen.items()):
            if name in given and not torch.equal(given[name].to(each.tensor.device), each.tensor):
                self.segment.unshare(name)

    def _load_optimizer(self, state: Mapping[str, Tensor]) -> None:
        if self._optimizer is None:
            return
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith(OPTIMIZER_PREFIX):
                name, _, field = key[len(OPTIMIZER_PREFIX) :].rpartition("/")
                if field in self._optimizer_fields and name in self._parameters:
                    counter = field == COUNTER_FIELD  # optimizers count on the host, wherever the weights lie
                    kept = value.clone() if counter else _beside(self._parameters[name], value)
                    found.setdefault(name, {})[field] = kept
        self._optimizer.state.clear()
        for name, parameter in self._parameters.items():
            own = found.get(name, {})
            if own.keys() != self._optimizer_fields:
                own = fresh_state(self._spec.optimizer, parameter)
            if own and parameter.requires_grad:
                self._optimizer.state[parameter].update(own)

    def _kept(self, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return a copy of what the state has under the prefix for weights that train."""
        named = (
            (p, name, state.get(prefix + name)) for name, p in self._parameters.items() if p.requires_grad
        )
        return {name: _beside(p, tensor) for p, name, tensor in named if tensor is not None}

    def moving(self) -> list[Tensor]:
        """Return what a step may change of the model: trainable weights, buffers and gradients that are
        added up or held, live tensors, in order. It is the same whether or not frozen tensors are shared."""
        buffers = [buffer for name, buffer in self._buffers.items() if name in self._changing]
        return [*self._trainable, *buffers, *self._accumulated.values(), *self.held.values()]

    def nbytes(self) -> int:
        """Bytes of the state's tensors, with what the first steps add to it."""
        kept = len(self._optimizer_fields - {"step"}) + (self._spec.accumulate > 1)
        kept += self._spec.optimizer.ema is not None
        weights = self._trainable if self._optimizer is not None else []
        coming = sum(kept * parameter.nbytes for parameter in weights)
        there = sum(t.nbytes for name, t in self.state().items() if not name.startswith(_OF_WEIGHTS))
        return there + coming

    def _optimizer_state(self, parameter: Tensor) -> dict[str, Any]:
        return self._optimizer.state.get(parameter, {}) if self._optimizer is not None else {}

    def _check_step_count(self) -> None:
        for name, parameter in self._parameters.items():
            count = self._optimizer_state(parameter).get("step")
            if count is not None and int(count) > self.step:
                raise ValueError(f"the optimizer took {int(count)} steps on {name}, the session {self.step}")


def _beside(weight: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy of the tensor on the weight's processor."""
    return tensor.to(weight.device, copy=True)


def model_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors of a state, by their names in the segment."""
    return {n.removeprefix(MODEL_PREFIX): t for n, t in state.items() if n.startswith(MODEL_PREFIX)}


def misfit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Why a segment with the tensors `own` can't take those of `given`, for a person; None where it can."""
    for name in sorted({*own, *given}):
        here, there = own.get(name), given.get(name)
        if here is None or there is None:
            return f"it has no {name}" if here is None else f"{name} is new"
        if (here.shape, here.dtype) != (there.shape, there.dtype):
            return f"{name} was {_form(there)} and is {_form(here)}"
    return None


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no element is NaN or infinite. A sum decides in one pass, if it can."""
    dense = [t.coalesce().values() if t.is_sparse else t for t in tensors]
    if dense and dense[0].device.type != "cpu":  # an accelerator is asked once, not once a tensor
        return bool(torch.stack([t.sum().isfinite() for t in dense]).all()) or all(
            bool(t.isfinite().all()) for t in dense
        )
    return all(bool(t.sum().isfinite()) or bool(t.isfinite().all()) for t in dense)


def tensors_of(values: Sequence[Tensor | int | None]) -> tuple[Tensor, ...]:
    """The tensors among the values."""
    return tuple(value for value in values if isinstance(value, Tensor))


def backward_from(loss: Tensor, share: float = 1.0, accumulate: int = 1) -> None:
    """Backward from a scalar, times what its micro-batch counts for in the batch, and divided by the number
    of batches that are added up.

    Nothing where no weight or input behind it takes a gradient, and where the micro-batch counts for
    nothing, since it has no labelled element and its loss is no number.
    """
    if share and loss.requires_grad:
        scaled = loss if share == 1 else loss * share
        torch.autograd.backward(scaled if accumulate == 1 else scaled / accumulate)


def detached(values: Values) -> Values:
    """The same values without their graph."""
    return tuple(value.detach() if isinstance(value, Tensor) else value for value in values)


def _changing_buffers(segment: Segment, spec: JobSpec) -> frozenset[str]:
    """Return the names of the buffers that training may change: a run writes them, or the mean of a round."""
    return frozenset(
        name
        for each in segment.program.document.tensors
        if each.kind == "buffer" and (each.name in segment.program.written or spec.fleet.has_rounds)
        for name in each.names
    )


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, under the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
