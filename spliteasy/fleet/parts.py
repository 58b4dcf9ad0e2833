"""The tensors of a segment that the mean is taken over, and the way a segment goes on from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spliteasy.fleet.mean import COUNTER
from spliteasy.job.spec import FleetSpec, JobSpec
from spliteasy.training.optim import state_fields
from spliteasy.training.segment_trainer import GRADIENT_PREFIX, MODEL_PREFIX, OPTIMIZER_PREFIX, SegmentTrainer

RUNNING = "running_mean"
"""The buffer that tells a batch norm from other layers."""


def norm_layers(names: Iterable[str]) -> frozenset[str]:
    """Return the batch-norm layers that keep running statistics, by their paths, from the names of all
    tensors.
    """
    split = (name.rpartition(".") for name in names)
    return frozenset(layer for layer, _, own in split if own == RUNNING)


def is_averaged(name: str, fleet: FleetSpec, norms: frozenset[str]) -> bool:
    """Return whether the mean is taken over that entry of a state (`model/…`, `optimizer/…/…`)."""
    if name.startswith(MODEL_PREFIX):
        tensor = name.removeprefix(MODEL_PREFIX)
    elif name.startswith(OPTIMIZER_PREFIX) and fleet.optimizer == "average":
        tensor = name.removeprefix(OPTIMIZER_PREFIX).rpartition("/")[0]
    else:
        return False
    return fleet.norm == "average" or tensor.rpartition(".")[0] not in norms


def averaged_part(trainer: SegmentTrainer, fleet: FleetSpec) -> dict[str, Tensor]:
    """Return a copy of what of the segment's state goes into the mean. Weights that do not train are left
    out.
    """
    state, fixed = trainer.snapshot(), trainer.fixed_names()
    norms = norm_layers(name.removeprefix(MODEL_PREFIX) for name in state)
    return {
        name: tensor
        for name, tensor in state.items()
        if name not in fixed and is_averaged(name, fleet, norms)
    }


def model_part(trainer: SegmentTrainer) -> dict[str, Tensor]:
    """Return a copy of the segment's weights and buffers."""
    return {name: x for name, x in trainer.snapshot().items() if name.startswith(MODEL_PREFIX)}


def window_part(trainer: SegmentTrainer) -> dict[str, Tensor]:
    """Return a copy of what a shared body has of a device's batch: gradients, and buffers after it."""
    buffers = trainer.buffer_names()
    return {
        name: tensor
        for name, tensor in trainer.snapshot().items()
        if name.startswith(GRADIENT_PREFIX) or name in buffers
    }


def averaged_end(trainer: SegmentTrainer, fleet: FleetSpec) -> dict[str, Tensor]:
    """Return the same of a head or tail: whole numbers can't be sealed, so that these stay the device's own
    then.
    """
    part = averaged_part(trainer, fleet)
    return {name: x for name, x in part.items() if x.is_floating_point()} if fleet.seals_sums else part


def like_of_optimizer(name: str, expected: Mapping[str, Tensor], spec: JobSpec) -> Tensor | None:
    """Return a tensor of the shape and type that the optimizer's tensor `name` of an end must have
    (`role/optimizer/…/…`); None where there is no such one. `expected` has the weights.
    """
    role, _, rest = name.partition("/")
    if spec.fleet.optimizer != "average" or not rest.startswith(OPTIMIZER_PREFIX):
        return None
    weight, _, key = rest.removeprefix(OPTIMIZER_PREFIX).rpartition("/")
    like = expected.get(f"{role}/{MODEL_PREFIX}{weight}")
    if like is None or key not in state_fields(spec.optimizer):
        return None
    return torch.zeros(()) if key == COUNTER else like


def rebased(state: Mapping[str, Tensor], mean: Mapping[str, Tensor], fleet: FleetSpec) -> dict[str, Tensor]:
    """Return the state of a segment that goes on from the mean: what is not averaged stays, but for an
    optimizer's state that is reset, or that the mean has none of.
    """
    norms = norm_layers(name.removeprefix(MODEL_PREFIX) for name in state)

    def stays(name: str) -> bool:
        if fleet.optimizer == "reset":
            return not name.startswith(OPTIMIZER_PREFIX)
        return not (name.startswith(OPTIMIZER_PREFIX) and is_averaged(name, fleet, norms))

    return {**{name: tensor for name, tensor in state.items() if stays(name)}, **mean}
