"""The weighted mean of tensors by name: one result, bit for bit, whatever the order of arrival.

Federated averaging (FedAvg, McMahan et al., 2017): each device counts for the samples it trained on. The sum
is taken in float64 and in the order of the devices' names, and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from spliteasy.training.segment_trainer import OPTIMIZER_PREFIX

Tensors = Mapping[str, Tensor]
Weighted = tuple[int, Tensors]
"""A device's weight in the mean, and its tensors by name."""

COUNTER = "step"
"""The optimizer's count of steps, by its name in the optimizer's state; a fraction of a step means
nothing."""


@torch.no_grad()
def weighted_mean(parts: Mapping[str, Weighted]) -> dict[str, Tensor]:
    """`cast(Σ n_i · float64(x_i) / Σ n_i)` of each tensor, over devices by name.

    Integer tensors (a count of batches) and the optimizer's counter become the largest of all. A device that
    counts for 0 takes no part, so that its numbers may be anything. A tensor of the optimizer that a device
    has not made yet counts as zeros. Raises ValueError where nobody counts.
    """
    counted = [parts[device] for device in sorted(parts) if parts[device][0] > 0]
    if not counted:
        raise ValueError("no device counts for anything")
    names = sorted({name for _, tensors in counted for name in tensors})
    return {
        name: _mean([(n, tensors.get(name)) for n, tensors in counted], largest=is_counter(name))
        for name in names
    }


def is_counter(name: str) -> bool:
    """Return whether the tensor of that name counts the optimizer's steps."""
    _, found, path = name.partition(OPTIMIZER_PREFIX)
    return bool(found) and path.rpartition("/")[2] == COUNTER


def _mean(values: Sequence[tuple[int, Tensor | None]], *, largest: bool) -> Tensor:
    there = [tensor for _, tensor in values if tensor is not None]
    first = there[0]
    if largest or not first.is_floating_point():
        top = first.clone()
        for tensor in there[1:]:
            torch.maximum(top, tensor, out=top)
        return top
    total = torch.zeros_like(first, dtype=torch.float64)
    for n, value in values:
        if value is not None:
            total += n * value.to(torch.float64)
    return (total / sum(n for n, _ in values)).to(first.dtype)
