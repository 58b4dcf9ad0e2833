"""NoPeek: the head also learns to send activations that depend less on its inputs.

The head's loss gains λ times the distance correlation of inputs and activations (Vepakomma et al., NoPeek,
arXiv 2008.09161). It needs no word of the worker: the head's backward gets the gradient of that term beside
the one that came. Distance correlation is estimated from the samples of a micro-batch (Székely et al., Annals
of Statistics 2007), so that small ones overrate it. It lowers what attacks by
similarity find, and bounds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_SAMPLES = 2
"""Samples that have a distance."""

TINY = 1e-9
"""Below it a variance is that of samples which are all alike, and has no correlation with anything."""


def distance_correlation(one: Tensor, other: Tensor) -> Tensor:
    """The distance correlation of two views of the same samples, each [samples, ...]: from 0 to 1."""
    a, b = (_centred_distances(rows.flatten(1)) for rows in (one, other))
    covariance = (a * b).mean()
    variances = (a * a).mean() * (b * b).mean()
    if float(variances.detach()) < TINY:
        return covariance * 0
    return (covariance.clamp_min(TINY) / variances.sqrt()).sqrt()


def penalty_gradient(strength: float, inputs: Sequence[Tensor], sent: Tensor) -> Tensor:
    """The gradient of strength · distance correlation of inputs and what is sent, by what is sent."""
    seen = [x.detach().flatten(1).double() for x in inputs if x.is_floating_point()]
    if not seen or sent.shape[0] < LEAST_SAMPLES:
        return torch.zeros_like(sent)
    with torch.enable_grad():
        leaf = sent.detach().double().requires_grad_()
        term = strength * distance_correlation(torch.cat(seen, dim=1), leaf)
        (gradient,) = torch.autograd.grad(term, leaf)
    return gradient.to(sent.dtype)


def _centred_distances(rows: Tensor) -> Tensor:
    """Distances of all pairs, less the means of row and column."""
    apart = (rows[:, None] - rows[None, :]).square().sum(2)
    distances = torch.where(apart > 0, apart.clamp_min(TINY**2).sqrt(), 0.0)
    return distances - distances.mean(0, keepdim=True) - distances.mean(1, keepdim=True) + distances.mean()
