"""Values whose first dimension is the batch's samples."""

from __future__ import annotations

from torch import Tensor

from spliteasy.graph.document import FreeDim, ValueSpec


def per_sample(factors: Tensor, value: Tensor) -> Tensor:
    """One factor for each sample, in a shape that multiplies `value`."""
    return factors.reshape(-1, *[1] * (value.dim() - 1))


def is_batch_first(spec: ValueSpec) -> bool:
    """Return whether the first dimension is the batch's samples, and no other depends on it."""
    return (
        bool(spec.shape)
        and spec.shape[0] == FreeDim(batch=1)
        and not any(isinstance(dim, FreeDim) and dim.per_batch for dim in spec.shape[1:])
    )
