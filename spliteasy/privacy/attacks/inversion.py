"""Inversion by optimization with a known head: descend on the input until it sends the same activations.

Unlike head tracking it takes no optimizer steps: it inverts one batch with the head that the adversary knows.
That is the job package's at the first step (exact for a head that is never trained, such as a frozen
backbone), or the released one at the last step.

Source: He, Zhang, Lee, "Model inversion attacks against collaborative inference" (ACSAC 2019), with total
variation as the prior of images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.graph.segment import Segment
from spliteasy.privacy.attacks.base import (
    WIRE,
    believed_head,
    crossing,
    made_up_inputs,
    mismatch,
    no_floating_input,
    scale_of,
    smooth,
)
from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import Adversary, View
from spliteasy.training.segment_trainer import Values

ROUNDS = 300
RATE = 0.05
PRIOR = 0.01


class Inversion:
    name = "inversion"
    adversaries = WIRE | {Adversary.HOLDER}
    source = "He et al. (ACSAC 2019)"

    def refuses(self, view: View) -> str | None:
        return no_floating_input(view)

    def run(self, view: View) -> InputGuess:
        index = len(view.steps) - 1 if view.released is not None else 0
        exchange = view.steps[index][0]
        head = believed_head(view).requires_grad_(False)
        found = invert(view, head, exchange.activations, exchange.samples)
        return InputGuess(inputs=found, steps=range(index, index + 1))


def invert(view: View, head: Segment, wanted: Values, samples: int) -> Tensor:
    """Return the first inputs that the head, in its present mode, would send these activations for."""
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in made_up_inputs(view, samples))
    optimizer = torch.optim.Adam([x for x in inputs if x.requires_grad], lr=RATE)
    scale = scale_of(wanted)
    for _ in range(ROUNDS):
        optimizer.zero_grad()
        error = mismatch(crossing(head, inputs), wanted) / scale
        torch.autograd.backward(error + PRIOR * smooth(inputs[0]))
        optimizer.step()
    return inputs[0].detach()
