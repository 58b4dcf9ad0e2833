"""Tests of whether two tensors are the same but for rounding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 64
"""Units in the last place, of the largest element, that count as rounding."""


def close(ours: Tensor, theirs: Tensor, *, units: int = ROUNDING, floor: float = 0.0) -> bool:
    """Return whether the two differ by rounding at most. `floor` is an absolute difference that counts as
    rounding too."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if torch.equal(ours, theirs) or ours.numel() == 0:
        return True
    if not ours.is_floating_point():
        return False
    a, b = ours.double(), theirs.double()
    both = a.isfinite() & b.isfinite()
    if not bool(((a == b) | (a.isnan() & b.isnan()) | both).all()):
        return False
    if not bool(both.any()):
        return True
    worst = float((a - b)[both].abs().max())
    return worst <= units * torch.finfo(ours.dtype).eps * float(b[both].abs().max()) + floor


def all_close(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Return whether both have the same number of tensors, and each pair is `close`."""
    return len(ours) == len(theirs) and all(close(a, b) for a, b in zip(ours, theirs, strict=True))


def same_gradient(ours: Tensor | None, theirs: Tensor | None, scale: float = 0.0) -> bool:
    """Return whether two gradients are close. `scale` is the largest element of any gradient of the step.

    No gradient is something else than a gradient of zeros: an optimizer passes over the first.
    """
    if ours is None or theirs is None:
        return ours is theirs
    return close(ours, theirs, floor=4 * torch.finfo(theirs.dtype).eps * scale)


def told_difference(ours: Tensor, theirs: Tensor) -> str:
    """Say how far apart two tensors are, or nothing where that is no number."""
    if ours.shape != theirs.shape or not ours.numel():
        return ""
    worst = float(torch.nan_to_num((ours.double() - theirs.double()).abs(), float("inf")).max())
    return f" (by up to {worst:.2g})"
