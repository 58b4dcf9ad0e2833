"""Head tracking: follow the device's head from its first weights, and compute the inputs from what it sends.

At each step the adversary looks for the inputs whose activations are those that were sent (Adam, then
L-BFGS, on the squared error). Then it takes the device's optimizer step on its copy of the head, with the ga
that the worker made itself, and goes on.

Source: this project's own trial; He, Zhang, Lee, "Model inversion attacks against collaborative inference"
(ACSAC 2019) for the descent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spliteasy.privacy.attacks.base import (
    WIRE,
    crossing,
    made_up_inputs,
    mismatch,
    no_floating_input,
    scale_of,
    unlike_public,
)
from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import Tensors, View
from spliteasy.training.segment_trainer import SegmentTrainer, Values

STEPS = 6
"""The number of steps that are followed."""

ADAM_ROUNDS = 60
RATE = 0.05
LBFGS_ROUNDS = 60
PRIOR = 0.01
"""The weight of mean and spread of public data."""


class HeadTracking:
    name = "head-tracking"
    adversaries = WIRE
    source = "own trial; descent of He et al. (ACSAC 2019)"

    def refuses(self, view: View) -> str | None:
        return no_floating_input(view)

    def run(self, view: View) -> InputGuess:
        steps = range(min(STEPS, len(view.steps)))
        spy = SegmentTrainer(view.job.head.spawn(), view.job.spec, device=view.device, role="head")
        found: list[Tensor] = []
        for index in steps:
            for micro, exchange in enumerate(view.steps[index]):
                inputs = _invert(view, spy, exchange.activations, exchange.samples, micro)
                found.append(inputs[0].detach())
                opened = spy.forward(tuple(x.detach() for x in inputs), micro=micro)
                kept = len(opened.outputs) - len(exchange.gradients)
                spy.backward(opened, (*exchange.gradients, *(None,) * kept))
            if spy.finite():
                spy.apply()
            else:
                spy.skip()
        return InputGuess(inputs=torch.cat(found), steps=steps)


def _invert(view: View, spy: SegmentTrainer, wanted: Values, samples: int, micro: int) -> Tensors:
    """The inputs for which the head, as it is now, would send these activations."""

    copy = spy.segment.spawn().requires_grad_(False)

    def sent(inputs: Tensors) -> Values:
        return crossing(copy, inputs)

    return descend(view, sent, wanted, made_up_inputs(view, samples))


def descend(view: View, send: Callable[[Tensors], Values], wanted: Values, start: Tensors) -> Tensors:
    """The inputs, from `start` on, that minimise the squared error of what is sent.

    Adam finds the basin, L-BFGS its bottom.
    """
    inputs = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in start)
    free = [x for x in inputs if x.requires_grad]
    scale = scale_of(wanted)

    def loss() -> float:
        for x in free:
            x.grad = None
        error = mismatch(send(inputs), wanted) / scale + PRIOR * unlike_public(inputs[0], view)
        torch.autograd.backward(error)
        return float(error.detach())

    adam = torch.optim.Adam(free, lr=RATE)
    for _ in range(ADAM_ROUNDS):
        loss()
        adam.step()
    lbfgs = torch.optim.LBFGS(
        free,
        max_iter=LBFGS_ROUNDS,
        history_size=20,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    lbfgs.step(loss)  # type: ignore[no-untyped-call]
    return tuple(x.detach() for x in inputs)
