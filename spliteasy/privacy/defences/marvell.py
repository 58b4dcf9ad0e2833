"""Marvell: the normal noise under which two classes' gradients are told apart the least, for its power.

Li et al., Label leakage and protection in two-party split learning (ICLR 2022, arXiv 2102.08504). Gradients
of a class are taken as normal around the class's mean, alike in every direction. Noise of class 0 and of
class 1 has one variance along the difference of the means, and another across it. These four are chosen so
that the symmetric divergence (sumKL) of the two noisy classes is the least at a mean power of `power` times
the squared difference. From Pinsker's inequality, an attack that scores single gradients has, at a divergence
of s < 4, an area under its curve of ½ + √s/2 − s/8 at most, as far as gradients are as normal as assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.job.io_schema import Signature
from spliteasy.job.spec import JobSpec
from spliteasy.training.losses import CLASS_LOSSES

GRID, ROUNDS = 65, 6
"""The minimum is looked for on so many points, then between the neighbours of the best, so many times."""
TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Variances:
    """The variance of the noise on gradients of class 0 and of class 1, along and across the difference."""

    along: tuple[float, float]
    across: tuple[float, float]


def least_telling(
    *, gap: float, spread: tuple[float, float], dims: int, positive: float, power: float
) -> Variances:
    """The variances under which two classes of gradients are told apart the least.

    `gap`: the squared distance of the means. `spread`: each class's own variance in one direction.
    `positive`: the share of class 1. `power`: the noise's mean square norm, at most.
    """
    shares = (max(1 - positive, TINY), max(positive, TINY))
    low = 0 if spread[0] <= spread[1] else 1
    missing = abs(spread[1] - spread[0])
    dear = shares[low] * (dims - 1)
    most = min(power, dear * missing)
    best: tuple[float, float, float] = (math.inf, 0.0, 0.0)
    across_span, along_span = (0.0, most), (0.0, 1.0)
    for _ in range(ROUNDS):
        spent = np.linspace(*across_span, GRID)[:, None]
        part = np.linspace(*along_span, GRID)[None, :]
        raised = np.divide(spent, dear) if dear > 0 else np.zeros_like(spent)
        ratio = (spread[low] + raised + TINY) / (spread[1 - low] + TINY)
        left = power - spent
        first = spread[0] + part * left / shares[0] + TINY
        second = spread[1] + (1 - part) * left / shares[1] + TINY
        tells = (dims - 1) * (ratio + 1 / ratio - 2) + first / second + second / first - 2
        tells = tells + gap * (1 / first + 1 / second)
        row, column = np.unravel_index(int(np.argmin(tells)), tells.shape)
        if tells[row, column] < best[0]:
            best = float(tells[row, column]), float(spent[row, 0]), float(part[0, column])
        across_span = _around(spent[:, 0], int(row))
        along_span = _around(part[0], int(column))
    _, spent_across, share = best
    rest = power - spent_across
    across = [0.0, 0.0]
    across[low] = spent_across / dear if dear > 0 else 0.0
    along = (share * rest / shares[0], (1 - share) * rest / shares[1])
    return Variances(along, (across[0], across[1]))


def _around(points: np.ndarray, place: int) -> tuple[float, float]:
    return float(points[max(0, place - 1)]), float(points[min(len(points) - 1, place + 1)])


def divergence(variances: Variances, *, gap: float, spread: tuple[float, float], dims: int) -> float:
    """SumKL of the two noisy classes: 0 where they are alike."""
    x, y = (s + v + TINY for s, v in zip(spread, variances.along, strict=True))
    a, b = (s + v + TINY for s, v in zip(spread, variances.across, strict=True))
    return 0.5 * ((dims - 1) * (a / b + b / a - 2) + x / y + y / x - 2 + gap * (1 / x + 1 / y))


def noisy(rows: Tensor, positive: Tensor, power: float, normal: Tensor) -> Tensor | None:
    """The gradients with noise, float64 [samples, dims]; None where the batch has no two classes to hide.

    `positive`: who is of class 1. `normal`: standard normal numbers of the same shape.
    """
    count, dims = rows.shape
    ones = int(positive.sum())
    if not 0 < ones < count:
        return None
    means = [rows[mask].mean(0) for mask in (~positive, positive)]
    difference = means[1] - means[0]
    gap = float(difference.square().sum())
    if gap <= 0:
        return None
    spreads = [
        float((rows[mask] - mean).square().sum(1).mean()) / dims
        for mask, mean in zip((~positive, positive), means, strict=True)
    ]
    found = least_telling(
        gap=gap, spread=(spreads[0], spreads[1]), dims=dims, positive=ones / count, power=power * gap
    )
    along, across = (
        torch.tensor(pair, dtype=torch.float64).sqrt()[positive.long()][:, None]
        for pair in (found.along, found.across)
    )
    direction = difference / math.sqrt(gap)
    parallel = (normal @ direction)[:, None] * direction
    return rows + across * (normal - parallel) + along * parallel


def check_two_classes(spec: JobSpec, signature: Signature) -> None:
    """Raise JobError where a job's labels are not of two classes."""
    target, output = signature.targets[0], signature.outputs[0]
    width = output.shape[-1] if output.shape else 1
    one = len(signature.targets) == 1 and len(signature.outputs) == 1
    if one and spec.loss.name in CLASS_LOSSES and target.dtype == "int64" and not target.shape and width == 2:
        return
    if one and spec.loss.name == "bce_with_logits" and math.prod(target.shape) == 1:
        return
    classes = f"this job's output has {width} numbers" if one else "this job has several outputs or targets"
    raise JobError(
        f"[privacy] marvell hides which of two classes a sample has, and {classes}",
        hint='use gradient_noise = "max_norm" or a number, or peer_labels',
    )


def positives(targets: Tensor) -> Tensor:
    """Return who is of class 1, of labels 0 and 1 in any type and shape."""
    return targets.reshape(len(targets)) > 0.5
