"""The part of a segment that does not depend on its weights: anybody who knows the graph can compute it, and
often undo it.

The weights are changed at random. Elements of what crosses that stay the same don't depend on them. How much
of an input such elements determine is read off their Jacobian J: a random direction v of the input is
looked for again from J v by the method of conjugate gradients. What is found of it is its part in the row
space of J, and so, in the mean, the share of the input's dimensions that can be solved for without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from spliteasy.graph.segment import Segment
from spliteasy.runtime.generators import seed_all, states_kept

STEPS = 64
"""The steps of the conjugate gradients."""

_SAME = 1e-5
"""Relative difference up to which two values are taken for equal."""

_SEED = 40503

Send = Callable[[Tensor], Tensor]


def with_other_weights(segment: Segment, seed: int = _SEED) -> Segment:
    """A copy in the same mode whose parameters were all changed at random; buffers stay."""
    generator = torch.Generator().manual_seed(seed)
    other = segment.spawn()
    parameters = [spec.name for spec in segment.program.document.tensors if spec.kind == "parameter"]
    tensors = other.tensors()
    with torch.no_grad():
        for name in parameters:
            tensor = tensors[name]
            if tensor.is_floating_point():
                one, two = (torch.rand(tensor.shape, generator=generator).to(tensor) for _ in range(2))
                tensor.mul_(0.5 + one).add_(0.05 + 0.1 * two)
    return other


def share_without_weights(segment: Segment, inputs: Sequence[Tensor], source: int) -> float:
    """The share of input `source`'s elements that what crosses determines, without any weight; from 0 to 1.

    The segment is run in its present mode. 0 where the input is not floating, or where an operator can't be
    differentiated twice.
    """
    if not inputs[source].is_floating_point():
        return 0.0
    others = [with_other_weights(segment, seed) for seed in (1, 2)]

    def sending(which: Segment) -> Send:
        def send(x: Tensor) -> Tensor:
            seed_all(_SEED)
            given = [x if place == source else value for place, value in enumerate(inputs)]
            wire = which.spawn()(*given)[: which.n_wire]
            floats = [v.flatten() for v in wire if isinstance(v, Tensor) and v.is_floating_point()]
            return torch.cat([v.double() for v in floats]) if floats else torch.empty(0)

        return send

    with states_kept():
        send = sending(segment)
        with torch.no_grad():
            made = [sending(each)(inputs[source]) for each in (segment, *others)]
        still = torch.ones(len(made[0]), dtype=torch.bool)
        for other in made[1:]:
            still &= (other - made[0]).abs() <= _SAME * made[0].abs() + 1e-12
        if int(still.sum()) * 2 <= inputs[source].numel():
            return 0.0
        try:
            return _found_again(lambda x: send(x)[still], inputs[source])
        except RuntimeError:
            return 0.0


def _found_again(send: Send, x: Tensor) -> float:
    """The part of a random direction that lies in the row space of `send`'s Jacobian at x."""
    with torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        made = send(at * 1)
        probe = torch.zeros_like(made).requires_grad_()
        if not made.requires_grad:
            return 0.0
        (pulled,) = torch.autograd.grad(made, at, probe, create_graph=True, allow_unused=True)
        if pulled is None:
            return 0.0

    def forth(v: Tensor) -> Tensor:
        if not pulled.requires_grad:
            return torch.zeros_like(made)
        (pushed,) = torch.autograd.grad(pulled, probe, v, retain_graph=True, allow_unused=True)
        return torch.zeros_like(made) if pushed is None else pushed

    def back(u: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(made, at, u, retain_graph=True)
        return gradient

    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(_SEED)).to(x)
    found = torch.zeros_like(direction)
    residual = forth(direction)
    toward = slope = back(residual)
    size = start = float(slope.double().pow(2).sum())
    for _ in range(STEPS):
        if size <= 1e-12 * start:
            break
        pushed = forth(toward)
        step = size / max(float(pushed.double().pow(2).sum()), 1e-300)
        found = found + step * toward
        residual = residual - step * pushed
        slope = back(residual)
        size, before = float(slope.double().pow(2).sum()), size
        toward = slope + size / before * toward
    share = float((found * direction).sum() / direction.pow(2).sum())
    return min(1.0, max(0.0, share))
