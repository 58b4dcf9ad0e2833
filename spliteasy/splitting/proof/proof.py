"""Prove a trace: one step of the traced graph gives what one step of the user's model gives.

The model runs once more by plain PyTorch, on the example and on inputs like it at other batch sizes and
lengths, and outputs, tensors afterwards and the gradient of every parameter and floating input must be those
of the graph. What differs is refused; nothing would show it later, for the loss falls anyway.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from spliteasy.errors import JobError
from spliteasy.graph.lengths import FreeLength
from spliteasy.graph.program import Code
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.boundaries import Partition
from spliteasy.splitting.lowering import lower
from spliteasy.splitting.proof.closeness import ROUNDING, close, same_gradient, told_difference
from spliteasy.splitting.proof.model_state import ModelState, left_as_it_was
from spliteasy.splitting.proof.plain_modes import fused_attention
from spliteasy.splitting.proof.trial import Trial, one_line, refuse_failure, tensors_of, trials
from spliteasy.splitting.trace import Trace

_OUTPUTS = (
    "branches on the batch size, a length or a mode of torch, and torch.manual_seed in the forward, can't be"
    " traced"
)
_TENSORS = (
    "a checkpointed region runs twice, so that batch norm in it moves its statistics twice, and a trace once:"
    " take it out of the region; write into buffers and parameters by torch's operators alone"
)
_WRITTEN_PARAMETER = (
    "the optimizer alone changes parameters: hold what the forward writes in a buffer (register_buffer), or"
    " compute with a changed copy, as in F.linear(x, weight.clamp(-1, 1), bias)"
)
_GRADIENTS = "a hook on a gradient, or a backward pass that is not torch's, can't be traced"

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
"""Modules with a fused path for evaluation."""


@dataclass(slots=True)
class _Step:
    """The results of a step: gradients, and buffers afterwards, by their names in the model."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor | None]
    after: dict[str, Tensor]


def prove(
    model: nn.Module,
    trace: Trace,
    inputs: tuple[Tensor, ...],
    *,
    training: bool,
    what: str,
    free: FreeLength | None = None,
) -> tuple[str, ...]:
    """Raises `JobError` unless the trace gives what the model gives in the modes that its modules have.

    Where the length of samples is `free`, it has to at several lengths.

    Returns notes for the user on what is right and may surprise. The model is left as it was.
    """
    with states_kept(), left_as_it_was(model) as state, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proof = _Proof(model, trace, training, what, state)
        with fused_attention(False):
            steps = proof.compare_all(trials(inputs, free))
        return () if training else proof.notes(steps)


class _Proof:
    def __init__(self, model: nn.Module, trace: Trace, training: bool, what: str, state: ModelState) -> None:
        self._model, self._training, self._what, self._state = model, training, what, state
        self._infos = list(trace.tensors.values())
        self._written = {op.name for op in trace.written}
        self._refuse_written_constants()
        table = {info.names[0]: place for place, info in enumerate(self._infos)}
        (whole,) = Partition(trace, ()).parts
        self._code = Code(lower(whole, table), len(self._infos))
        self._parameters = dict(model.named_parameters())
        self._buffers = dict(model.named_buffers())

    def compare_all(self, tries: Sequence[Trial]) -> list[tuple[Trial, list[Tensor] | None]]:
        """Take every step both ways; the model's outputs of each."""
        steps: list[tuple[Trial, list[Tensor] | None]] = []
        for trial in tries:
            if not (trial.spare and _tells(steps[-1][1])):
                steps.append((trial, self.compare(trial)))
        return steps

    def compare(self, trial: Trial) -> list[Tensor] | None:
        """Take the step both ways; returns the model's outputs, None where it can't take such inputs."""
        expected = self._eagerly(trial)
        if expected is None:
            return None
        try:
            found = self._by_graph(trial)
        except Exception as error:
            self._refuse(f"can't run on {trial.name}: {one_line(error)}", _OUTPUTS)
        self._compare_outputs(expected.outputs, found.outputs, trial)
        for name, tensor in expected.after.items():
            if not close(found.after[name], tensor):
                self._refuse(f"leaves other values in `{name}` after a step on {trial.name}", _TENSORS)
        self._compare_gradients(expected.gradients, found.gradients, trial)
        return expected.outputs

    def notes(self, steps: Sequence[tuple[Trial, list[Tensor] | None]]) -> tuple[str, ...]:
        """Say it where torch's fused attention, which plain evaluation may take, gives other numbers."""
        if not any(isinstance(module, FUSED) for module in self._model.modules()):
            return ()
        for trial, plain in steps:
            quick = self._eagerly(trial) if plain is not None else None
            for ours, theirs in zip(plain or (), quick.outputs if quick else (), strict=False):
                if not close(theirs, ours, units=64 * ROUNDING):
                    return (
                        "torch's fused path of nn.TransformerEncoder gives other numbers in evaluation than"
                        f" its layers do{told_difference(theirs, ours)}, as at padded positions; split"
                        " evaluation runs the layers, as plain PyTorch does after"
                        " torch.backends.mha.set_fastpath_enabled(False)",
                    )
        return ()

    # -- one step, by plain PyTorch and by the graph

    def _eagerly(self, trial: Trial) -> _Step | None:
        """None where the model can't take the inputs, and need not."""
        for parameter in self._parameters.values():
            parameter.grad = None
        leaves, inputs = trial.leaves()
        torch.default_generator.manual_seed(trial.seed)
        try:
            with torch.set_grad_enabled(self._training):
                outputs = tensors_of(self._model(*inputs))
                _backward_from(outputs)
            after = dict(self._model.named_buffers())
            step = _Step(
                [output.detach().clone() for output in outputs],
                {name: _gradient(x) for name, x in (*self._parameters.items(), *leaves.items())},
                {name: after[name].detach().clone() for name in self._buffers},
            )
        except Exception as error:
            if trial.certain:
                refuse_failure(error, trial, self._training, self._what)
            return None
        finally:
            written = self._state.restore()
        for name in written:
            self._refuse(
                f"leaves parameter `{name}` as it was, into which the {self._what} writes", _WRITTEN_PARAMETER
            )
        return step

    def _by_graph(self, trial: Trial) -> _Step:
        tensors = [self._stand_in(place) for place in range(len(self._infos))]
        leaves, inputs = trial.leaves()
        torch.default_generator.manual_seed(trial.seed)
        with torch.set_grad_enabled(self._training):
            outputs = tensors_of(self._code(tensors, inputs))
            _backward_from(outputs)
        known = {id(info.tensor): tensor for info, tensor in zip(self._infos, tensors, strict=True)}
        gradients = {
            name: _gradient(known[id(parameter)]) if id(parameter) in known else None
            for name, parameter in self._parameters.items()
        }
        return _Step(
            [output.detach() for output in outputs],
            {**gradients, **{name: _gradient(leaf) for name, leaf in leaves.items()}},
            {name: known.get(id(tensor), tensor).detach() for name, tensor in self._buffers.items()},
        )

    def _stand_in(self, place: int) -> Tensor:
        """Return a tensor of the model for the graph: a copy where the graph may write into it."""
        info = self._infos[place]
        tensor = info.tensor.detach()
        if info.kind != "parameter" or info.names[0] in self._written:
            tensor = tensor.clone(memory_format=torch.preserve_format)
        return tensor.requires_grad_(info.kind == "parameter" and info.tensor.requires_grad)

    # -- what differs

    def _compare_outputs(self, wanted: Sequence[Tensor], found: Sequence[Tensor], trial: Trial) -> None:
        if len(wanted) != len(found):
            self._refuse(f"gives {len(found)} outputs on {trial.name}, not {len(wanted)}", _OUTPUTS)
        for place, (right, ours) in enumerate(zip(wanted, found, strict=True)):
            if right.shape != ours.shape:
                shapes = f"{tuple(ours.shape)} on {trial.name}, not {tuple(right.shape)}"
                self._refuse(f"gives output {place} of shape {shapes}", _OUTPUTS)
            if not close(ours, right):
                how = told_difference(ours, right)
                self._refuse(f"gives other values in output {place} on {trial.name}{how}", _OUTPUTS)

    def _compare_gradients(
        self, wanted: dict[str, Tensor | None], found: dict[str, Tensor | None], trial: Trial
    ) -> None:
        differing = [name for name in wanted if not same_gradient(found[name], wanted[name])]
        if differing:
            sizes = [float(g.abs().max()) for g in wanted.values() if g is not None and g.numel()]
            scale = max((size for size in sizes if size < float("inf")), default=0.0)
            differing = [name for name in differing if not same_gradient(found[name], wanted[name], scale)]
        for name in differing[-1:]:
            right, ours = wanted[name], found[name]
            how = " (the graph gives one)" if right is None else " (the graph gives none)"
            if right is not None and ours is not None:
                how = told_difference(ours, right)
            self._refuse(f"gives another gradient of `{name}` on {trial.name}{how}", _GRADIENTS)

    def _refuse(self, difference: str, hint: str) -> NoReturn:
        mode, verb = ("training", "train") if self._training else ("evaluation", "evaluate")
        raise JobError(
            f"the trace of the {self._what} in {mode} mode {difference}: it would {verb} another {self._what}"
            " than yours",
            hint=hint,
        )

    def _refuse_written_constants(self) -> None:
        for info in self._infos:
            if info.kind == "constant" and info.names[0] in self._written:
                name = info.names[0].rpartition(".")[2]
                raise JobError(
                    f"the forward of the {self._what} writes into a tensor that is no buffer ({name})",
                    hint="register it by register_buffer, so that it is part of the model's state",
                )


def _tells(outputs: list[Tensor] | None) -> bool:
    """Return whether a trial says something: the model took the inputs and gave numbers."""
    return outputs is not None and all(bool(torch.isfinite(output).all()) for output in outputs)


def _gradient(leaf: Tensor) -> Tensor | None:
    """Return the gradient that a leaf got; a sparse one as a dense one."""
    return leaf.grad.to_dense() if leaf.grad is not None and leaf.grad.is_sparse else leaf.grad


def _backward_from(outputs: Sequence[Tensor]) -> None:
    """Backward from a number to which every finite element of the outputs adds in another way."""
    total = torch.zeros(())
    for output in outputs:
        if output.is_floating_point() and output.numel():
            finite = torch.nan_to_num(output.float(), 0.0, 0.0, 0.0)
            weights = torch.linspace(-1.0, 2.0, output.numel()).reshape(output.shape)
            total = total + (finite * weights).mean() + 0.1 * (finite * finite).mean()
    if total.requires_grad:
        torch.autograd.backward(total)
