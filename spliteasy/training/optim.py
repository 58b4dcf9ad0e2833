"""The optimizer of a segment: the torch.optim class that a user would write, one tensor at a time.

`foreach` and `fused` are off, so that each parameter's update is the same arithmetic whether the
optimizer holds the whole model or one segment of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from spliteasy.job.spec import (
    AdagradSpec,
    ClipSpec,
    GroupSpec,
    JobSpec,
    LionSpec,
    OptimizerSpec,
    RmsPropSpec,
    SgdSpec,
)
from spliteasy.training import schedule
from spliteasy.training.lion import Lion

BASE_LR = "initial_lr"
"""Key of a group's unscheduled rate, named as torch's schedulers name it."""


def group_of(spec: OptimizerSpec, name: str) -> GroupSpec | None:
    """The first group whose pattern matches the parameter's original name."""
    return next((group for group in spec.groups if fnmatchcase(name, group.pattern)), None)


def freeze(spec: OptimizerSpec, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Turn gradients off for the parameters that a frozen group names."""
    for name, parameter in named_parameters:
        group = group_of(spec, name)
        if group is not None and group.frozen:
            parameter.requires_grad_(False)


def build_optimizer(
    spec: OptimizerSpec, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> Optimizer | None:
    """The optimizer over the trainable ones of `named_parameters` (original names), in their order.

    Freezes what a frozen group names; leaves out what needs no gradient. None where nothing is left.
    """
    named = list(named_parameters)
    freeze(spec, named)
    members: dict[GroupSpec | None, list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            members.setdefault(group_of(spec, name), []).append(parameter)
    if not members:
        return None
    groups: list[dict[str, Any]] = []
    for group, parameters in members.items():
        lr = spec.lr if group is None or group.lr is None else group.lr
        decay = spec.weight_decay if group is None or group.weight_decay is None else group.weight_decay
        groups.append({"params": parameters, "lr": lr, BASE_LR: lr, "weight_decay": decay})
    settings = spec.model_dump(exclude={"name", "weight_decay", "groups", "ema"})
    if isinstance(spec, LionSpec):
        return Lion(groups, **settings)
    if isinstance(spec, RmsPropSpec):
        return RMSprop(groups, **settings, foreach=False)
    kinds: dict[str, type[Optimizer]] = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "adagrad": Adagrad}
    return kinds[spec.name](groups, **settings, foreach=False, fused=False)  # type: ignore[call-arg]


def fresh_state(spec: OptimizerSpec, parameter: Tensor) -> dict[str, Any]:
    """Return what an optimizer that has taken no step keeps of the parameter: for most of them nothing."""
    ungrouped = spec.model_copy(update={"groups": ()})
    optimizer = build_optimizer(ungrouped, [("", nn.Parameter(parameter.detach()))])
    return next(iter(optimizer.state.values()), {}) if optimizer is not None else {}


def state_fields(spec: OptimizerSpec) -> frozenset[str]:
    """Return the names of what the optimizer keeps of a parameter."""
    if isinstance(spec, SgdSpec):
        return frozenset({"momentum_buffer"} if spec.momentum else ())
    if isinstance(spec, RmsPropSpec):
        momentum = {"momentum_buffer"} if spec.momentum else set()
        return frozenset({"step", "square_avg", *momentum, *({"grad_avg"} if spec.centered else ())})
    if isinstance(spec, AdagradSpec):
        return frozenset({"step", "sum"})
    if isinstance(spec, LionSpec):
        return frozenset({"exp_avg"})
    return frozenset({"step", "exp_avg", "exp_avg_sq"})


def set_learning_rate(optimizer: Optimizer | None, spec: JobSpec, step: int) -> None:
    """Set every group's rate for the optimizer's step `step` (1 is the first)."""
    if optimizer is None:
        return
    scale = schedule.factor(spec.schedule, step)
    for group in optimizer.param_groups:
        group["lr"] = group[BASE_LR] * scale


def clip_gradients(parameters: Iterable[nn.Parameter], clip: ClipSpec | None) -> None:
    """Scale the gradients of one segment so that their 2-norm is at most `clip.max_norm`.

    The norm is taken in the order of `parameters`; None clips nothing. Gradients that are not finite
    stay so: the caller decides what becomes of the step.
    """
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip.max_norm, foreach=False)
