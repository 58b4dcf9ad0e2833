"""Build and trace the user's model, its example and its loss.

This is the only part of a job's life that runs the user's code, on the user's own machine.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spliteasy.errors import JobError
from spliteasy.graph.document import DTYPE_NAMES
from spliteasy.graph.lengths import FreeLength
from spliteasy.job.io_schema import dtype_name, told
from spliteasy.job.measure import measure_of
from spliteasy.job.micro_batch_check import check_micro_batches
from spliteasy.job.padding_check import check_padding
from spliteasy.job.spec import JobSpec, OptimizerSpec
from spliteasy.privacy.recording import Recording, recorded
from spliteasy.runtime import user_code
from spliteasy.runtime.generators import seed_all, states_kept
from spliteasy.splitting.calling import adapt
from spliteasy.splitting.export import TracedModel, trace_model
from spliteasy.splitting.losses import PortableLoss, trace_function
from spliteasy.training.losses import LOSSES, LossFunction, UsersLoss
from spliteasy.training.optim import freeze

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The user's model, built and traced, and the example of what goes in and out."""

    spec: JobSpec
    root: Path | None
    traced: TracedModel
    inputs: Tensors
    targets: Tensors
    recording: Recording
    """The record of how the initial tensors of the model and the loss were made."""
    loss: UsersLoss | None
    """The user's own loss; None for a loss by name."""

    @property
    def shared_inputs(self) -> tuple[str, ...]:
        """Inputs that may leave the device, by the names they have in the trace."""
        names = dict(zip(self.spec.model.inputs, self.traced.train.inputs, strict=True))
        return tuple(names[name].name for name in self.spec.share_inputs)


def load_source(spec: JobSpec, root: Path | None) -> Source:
    """Build and trace the user's model. Raises JobError."""
    with recorded() as recording:
        model, inputs, targets = build_model(spec, root)
        loss = users_loss(spec, root) if spec.loss.function is not None else None
    _check_lengths(spec, targets)
    traced = trace_model(model, inputs, free=free_length(spec, spec.model.inputs))
    return Source(spec, root, traced, inputs, targets, recording, loss)


def free_length(spec: JobSpec, names: Sequence[str]) -> FreeLength | None:
    """Return which of the inputs or targets `names` have a free length, in their dimension behind the batch;
    None where all samples have one shape."""
    if spec.model.max_length is None:
        return None
    return FreeLength(tuple((1,) if name in spec.model.pad else () for name in names), spec.model.max_length)


def _check_lengths(spec: JobSpec, targets: Tensors) -> None:
    free = free_length(spec, spec.model.targets)
    if free is not None:
        free.check(targets, "target")


def build_model(spec: JobSpec, root: Path | None = None) -> tuple[nn.Module, Tensors, Tensors]:
    """The user's model as the job begins with it, and the example's (inputs, targets).

    Every generator is seeded with the job's seed before the factory is called, and put back afterwards.
    Frozen groups take no gradient. Raises JobError.
    """
    factory = user_code.resolve(spec.model.factory, root=root, what="model.factory")
    make_example = user_code.resolve(spec.model.example, root=root, what="model.example")
    with states_kept():
        seed_all(spec.seed)
        model = user_code.call(factory, reference=spec.model.factory, what="model.factory")
        given = user_code.call(make_example, reference=spec.model.example, what="model.example")
    if not isinstance(model, nn.Module):
        raise JobError(
            f"model.factory = {spec.model.factory!r} returned a {type(model).__name__}, not a module"
        )
    inputs, targets = example_of(spec, given)
    adapt(model, spec.model.inputs if _by_name(given) else None, autocast=spec.precision == "bf16")
    own = users_loss(spec, root).named_parameters() if spec.loss.function is not None else []
    _check_parameters([*model.named_parameters(), *own], spec.optimizer)
    freeze(spec.optimizer, model.named_parameters())
    _check_dtypes([*model.named_parameters(), *own], spec.precision)
    return model, inputs, targets


def _by_name(given: Any) -> bool:
    """Return whether an example names the model's inputs, so that the model is called by keywords."""
    return isinstance(given, Mapping) or (isinstance(given, tuple) and isinstance(given[0], Mapping))


def example_of(spec: JobSpec, given: Any, what: str = "model.example") -> tuple[Tensors, Tensors]:
    """(inputs, targets) that the user's function `what` returned, checked. Raises JobError.

    Each is a tensor, a tuple, or a mapping by the job's names; one mapping may hold them all.
    """
    if isinstance(given, Mapping):
        given = (
            {name: given[name] for name in given if name not in spec.model.targets},
            {name: given[name] for name in given if name in spec.model.targets},
        )
    if not isinstance(given, tuple) or len(given) != 2:
        raise JobError(f"{what} must return a pair (inputs, targets), not {type(given).__name__}")
    inputs = _tensors(given[0], spec.model.inputs, "input", what)
    targets = _tensors(given[1], spec.model.targets, "target", what)
    if len({tensor.shape[0] for tensor in (*inputs, *targets)}) > 1:
        raise JobError(f"{what}: inputs and targets differ in their first dimension, the batch")
    return inputs, targets


def _tensors(given: Any, names: tuple[str, ...], kind: str, what: str) -> Tensors:
    if isinstance(given, Mapping):
        if set(given) != set(names):
            raise JobError(
                f"{what} gives the {kind}s {', '.join(given) or 'none'}, model.{kind}s names"
                f" {', '.join(names)}",
                hint=f"name the same {kind}s in both",
            )
        given = tuple(given[name] for name in names)
    values = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if len(values) != len(names):
        raise JobError(
            f"{what} gives {len(values)} {kind}s, model.{kind}s names {len(names)}",
            hint=f'name them all in order, as in {kind}s = ["first", "second"]',
        )
    for name, value in zip(names, values, strict=True):
        if not isinstance(value, Tensor) or value.dim() == 0 or value.dtype not in DTYPE_NAMES:
            found = (
                told(dtype_name(value.dtype), value.shape)
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise JobError(f"{what}: {kind} {name!r} is {found}, not a batch of samples")
    return values


def _check_parameters(named: Sequence[tuple[str, nn.Parameter]], optimizer: OptimizerSpec) -> None:
    names = [name for name, _ in named]
    for place, group in enumerate(optimizer.groups):
        if not any(fnmatchcase(name, group.pattern) for name in names):
            near = difflib.get_close_matches(group.pattern, names, n=3, cutoff=0.3) or names[:3]
            raise JobError(
                f"optimizer.groups[{place}].pattern: {group.pattern!r} matches no parameter",
                hint=f"parameters are such as {', '.join(near)}" if near else "the model has no parameters",
            )


def _check_dtypes(named: Sequence[tuple[str, nn.Parameter]], precision: str) -> None:
    """Refuse what the job's precision has no place for: under bf16, bfloat16 is for frozen parameters."""
    for name, parameter in named:
        low = precision == "bf16" and parameter.dtype == torch.bfloat16
        if parameter.dtype == torch.float32 or (low and not parameter.requires_grad):
            continue
        if low:
            raise JobError(
                f"parameter {name} is bfloat16 and trains, which would lose most of what a step changes",
                hint="return it as float32, or freeze it: autocast casts what trains by itself",
            )
        raise JobError(
            f"parameter {name} is {dtype_name(parameter.dtype)}, and precision is {precision}",
            hint="return model.float() from the factory",
        )


def users_loss(spec: JobSpec, root: Path | None) -> UsersLoss:
    """The function, module or class of a module that `loss.function` names. Raises JobError.

    A module is copied, and a class called under the job's seed, so that each call gives the same parameters.
    Frozen groups take no gradient.
    """
    reference = spec.loss.function or ""
    with states_kept():
        seed_all(spec.seed)
        function = user_code.resolve(reference, root=root, what="loss.function")
        if isinstance(function, type) and issubclass(function, nn.Module):
            function = user_code.call(function, reference=reference, what="loss.function")
    loss = UsersLoss(copy.deepcopy(function) if isinstance(function, nn.Module) else function)
    freeze(spec.optimizer, loss.named_parameters())
    return loss


def make_loss(
    spec: JobSpec,
    own: UsersLoss | None,
    outputs: Tensors,
    targets: Tensors,
    *,
    free: FreeLength | None = None,
) -> LossFunction:
    """The loss, tried on the example's outputs and targets; `own`: the user's. Raises JobError.

    `free`: which of the outputs, then of the targets, have a free length.
    """
    matching = tuple(torch.cat((y, y)) if y.shape[0] == 1 else y for y in targets)
    outputs = tuple(y.detach().requires_grad_(y.is_floating_point()) for y in outputs)
    if own is not None:
        traced = trace_function(own.function, outputs, matching, free=free)
        loss: LossFunction = traced
        of_model: LossFunction = traced.of_model
        what = spec.loss.function or ""
    else:
        loss = of_model = LOSSES[spec.loss.name or ""]
        what = spec.loss.name or ""
    try:
        value = of_model(outputs, matching)
    except JobError:
        raise
    except Exception as error:
        shapes = [_told(t) for t in (*outputs, *matching)]
        raise JobError(
            f"loss {what} can't take the example's outputs and targets ({', '.join(shapes)}):"
            f" {' '.join(str(error).split())}"
        ) from error
    if value.dtype != torch.float32 or value.dim() or not value.requires_grad:
        raise JobError(f"loss {what} gives {_told(value)}, not a float32 number that depends on the outputs")
    if own is not None and spec.micro_batches > 1:
        check_micro_batches(spec, measure_of(spec, loss), of_model, outputs, matching)
    if free is not None:
        check_padding(spec, of_model, outputs, matching, free)
    return loss


def make_metric_function(
    reference: str, root: Path | None, outputs: Tensors, targets: Tensors, *, free: FreeLength | None = None
) -> PortableLoss:
    """The metric that `evaluation.metrics` names as `module:function`, traced. Raises JobError."""
    function = user_code.resolve(reference, root=root, what="evaluation.metrics")
    detached = tuple(output.detach() for output in outputs)
    try:
        traced = trace_function(lambda *given: function(*given).float(), detached, targets, free=free)
    except JobError as error:
        raise JobError(f"the metric {reference}: {error.message}", hint=error.hint) from error
    if traced.own:
        raise JobError(
            f"the metric {reference} has parameters, which nothing would train",
            hint="name a function of (outputs, targets) that needs none",
        )
    return traced


def _told(tensor: Tensor) -> str:
    return told(dtype_name(tensor.dtype), tensor.shape)
