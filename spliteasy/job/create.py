"""Make a job's parts from the user's model: import, seed, build, check, cut, pack.

The only part of a job's life that runs the user's code, on the user's own machine.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn

from spliteasy import importing
from spliteasy.errors import JobError
from spliteasy.job.signature import SampleSpec, Signature, dtype_name, told
from spliteasy.job.spec import JobSpec, OptimizerSpec
from spliteasy.losses import LOSSES, LossFunction, UsersLoss
from spliteasy.optim import freeze
from spliteasy.portable.graph import DTYPE_NAMES, BatchDim, Value
from spliteasy.portable.tensors import tensors_to_bytes
from spliteasy.seeding import seed_all, states_kept
from spliteasy.splitting.exporting import TracedModel, trace_model
from spliteasy.splitting.losses import PortableLoss, trace_function
from spliteasy.splitting.splitting import Split, split_traced

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """The user's model, built and traced, and the example of what goes in and out."""

    spec: JobSpec
    root: Path | None
    traced: TracedModel
    inputs: Tensors
    targets: Tensors

    @property
    def shared_inputs(self) -> tuple[str, ...]:
        """Inputs that may leave the device, by the names they have in the trace."""
        names = dict(zip(self.spec.model.inputs, self.traced.train.inputs, strict=True))
        return tuple(names[name].name for name in self.spec.share_inputs)


def load_source(spec: JobSpec, root: Path | None) -> Source:
    """Build and trace the user's model. Raises JobError."""
    model, inputs, targets = build_model(spec, root)
    return Source(spec, root, trace_model(model, inputs), inputs, targets)


def create_parts(spec: JobSpec, root: Path | None) -> dict[str, bytes]:
    """The parts of the job's package, by name. Equal models give equal bytes. Raises JobError.

    Cuts that are "auto" are planned first, and the spec in the package names them.
    """
    source = load_source(spec, root)
    if spec.model.auto:
        from spliteasy.planning.planner import plan_source  # it takes what this module makes

        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"cuts": plan_source(source).best.cuts})}
        )
    inputs, targets = source.inputs, source.targets
    split = split_traced(source.traced, spec.model.cuts, share_inputs=source.shared_inputs)
    for note in split.notes:
        structlog.get_logger(__name__).warning(note)
    outputs = _outputs(split, inputs)
    loss = make_loss(spec, root, outputs, targets)
    if isinstance(loss, PortableLoss) and loss.own:
        split = split_traced(
            source.traced, spec.model.cuts, share_inputs=source.shared_inputs, loss_parameters=loss.own
        )
    signature = Signature(
        inputs=_described(spec.model.inputs, inputs),
        targets=_described(spec.model.targets, targets),
        outputs=_described([f"output{place}" for place in range(len(outputs))], outputs),
    )
    parts = {"spec.json": spec.to_json(), "signature.json": signature.to_json()}
    for segment in split.segments:
        parts[f"{segment.name}.json"] = segment.graph_json()
        parts[f"{segment.name}.safetensors"] = segment.tensors_bytes()
    if isinstance(loss, PortableLoss):
        parts["loss.json"] = loss.graph_json()
        parts["loss.safetensors"] = tensors_to_bytes(loss.tensors())
    return parts


def build_model(spec: JobSpec, root: Path | None = None) -> tuple[nn.Module, Tensors, Tensors]:
    """The user's model as the job begins with it, and the example's (inputs, targets).

    Every generator is seeded with the job's seed before the factory is called, and put back afterwards.
    Frozen groups take no gradient. Raises JobError.
    """
    factory = importing.resolve(spec.model.factory, root=root, what="model.factory")
    make_example = importing.resolve(spec.model.example, root=root, what="model.example")
    with states_kept():
        seed_all(spec.seed)
        model = importing.call(factory, reference=spec.model.factory, what="model.factory")
        given = importing.call(make_example, reference=spec.model.example, what="model.example")
    if not isinstance(model, nn.Module):
        raise JobError(
            f"model.factory = {spec.model.factory!r} returned a {type(model).__name__}, not a module"
        )
    inputs, targets = example_of(spec, given)
    own = users_loss(spec, root).named_parameters() if spec.loss.function is not None else []
    _check_parameters([*model.named_parameters(), *own], spec.optimizer)
    freeze(spec.optimizer, model.named_parameters())
    return model, inputs, targets


def example_of(spec: JobSpec, given: Any, what: str = "model.example") -> tuple[Tensors, Tensors]:
    """(inputs, targets) that the user's function `what` returned, checked. Raises JobError."""
    if not isinstance(given, tuple) or len(given) != 2:
        raise JobError(f"{what} must return a pair (inputs, targets), not {type(given).__name__}")
    inputs = _tensors(given[0], spec.model.inputs, "input", what)
    targets = _tensors(given[1], spec.model.targets, "target", what)
    if len({tensor.shape[0] for tensor in (*inputs, *targets)}) > 1:
        raise JobError(f"{what}: inputs and targets differ in their first dimension, the batch")
    return inputs, targets


def _tensors(given: Any, names: tuple[str, ...], kind: str, what: str) -> Tensors:
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
    for name, parameter in named:
        if parameter.dtype != torch.float32:
            raise JobError(
                f"parameter {name} is {dtype_name(parameter.dtype)}, and precision is fp32",
                hint="return model.float() from the factory",
            )


def _outputs(split: Split, inputs: Tensors) -> Tensors:
    """What the segments give for the example, in training; evaluation must give the like."""
    in_training = _run(split, inputs, training=True)
    in_evaluation = _run(split, inputs, training=False)
    _check_batches(split)
    shapes = [[(value.dtype, value.shape) for value in values] for values in (in_training, in_evaluation)]
    if shapes[0] != shapes[1]:
        raise JobError(
            "the model gives other outputs in evaluation than in training, so that one loss can't take both",
            hint="let its forward return the same outputs in both modes",
        )
    return in_training


def _check_batches(split: Split) -> None:
    """Every output is a batch of samples. Raises JobError."""
    for place, spec in enumerate(split.segments[-1].output_values):
        if spec.shape[:1] != (BatchDim(batch=1),):
            raise JobError(
                f"output {place} of the model, {spec.name}, has no batch as its first dimension",
                hint="return tensors with the batch first; a parameter that the loss needs belongs to the"
                " loss, as an nn.Module named in loss.function",
            )


@torch.no_grad()
def _run(split: Split, inputs: Tensors, *, training: bool) -> Tensors:
    """The outputs of copies of the segments: running statistics stay as they are."""
    head, *rest = (segment.spawn().train(training) for segment in split.segments)
    values: tuple[Value, ...] = tuple(torch.cat((x, x)) if x.shape[0] == 1 else x for x in inputs)
    with states_kept():
        values = head(*values)
        wire, stay = values[: head.n_wire], values[head.n_wire :]
        for segment in rest:
            wire = segment(*wire, *(stay if segment is not rest[0] else ()))
    outputs = tuple(value for value in wire if isinstance(value, Tensor) and value.dim())
    if len(outputs) != len(wire):
        raise JobError("the model returns what is not a batch", hint="return tensors with the batch first")
    return outputs


def users_loss(spec: JobSpec, root: Path | None) -> UsersLoss:
    """The function, module or class of a module that `loss.function` names. Raises JobError.

    A module is copied, and a class called under the job's seed, so that each call gives the same parameters.
    Frozen groups take no gradient.
    """
    reference = spec.loss.function or ""
    with states_kept():
        seed_all(spec.seed)
        function = importing.resolve(reference, root=root, what="loss.function")
        if isinstance(function, type) and issubclass(function, nn.Module):
            function = importing.call(function, reference=reference, what="loss.function")
    loss = UsersLoss(copy.deepcopy(function) if isinstance(function, nn.Module) else function)
    freeze(spec.optimizer, loss.named_parameters())
    return loss


def make_loss(spec: JobSpec, root: Path | None, outputs: Tensors, targets: Tensors) -> LossFunction:
    """The loss, tried on the example's outputs and targets. Raises JobError."""
    matching = tuple(torch.cat((y, y)) if y.shape[0] == 1 else y for y in targets)
    outputs = tuple(y.detach().requires_grad_(y.is_floating_point()) for y in outputs)
    if spec.loss.function is not None:
        traced = trace_function(users_loss(spec, root).function, outputs, matching)
        own = tuple(info.tensor for info in traced.own)
        loss: LossFunction = traced
        what = spec.loss.function
    else:
        loss, what, own = LOSSES[spec.loss.name or ""], spec.loss.name or "", ()
    try:
        value = loss((*outputs, *own), matching)
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
    return loss


def _described(names: tuple[str, ...] | list[str], batch: Tensors) -> tuple[SampleSpec, ...]:
    return tuple(SampleSpec.of(name, tensor) for name, tensor in zip(names, batch, strict=True))


def _told(tensor: Tensor) -> str:
    return told(dtype_name(tensor.dtype), tensor.shape)
