"""UnSplit: inversion without the head's weights. Inputs and a made-up head are descended on in turns.

The adversary knows the head's architecture. It begins with weights of its own and alternates: some rounds on
the inputs with the head held fixed, some on the head with the inputs held fixed, until both together explain
the activations. What it finds is determined only up to what a head can undo, so that it works on heads
of a layer or two.

Source: Erdoğan, Küpçü, Çiçek, "UnSplit" (WPES 2022, arXiv 2108.09033).
"""

from __future__ import annotations

import torch

from spliteasy.graph.segment import Segment
from spliteasy.privacy.attacks.base import (
    WIRE,
    crossing,
    made_up_inputs,
    mismatch,
    no_floating_input,
    scale_of,
    smooth,
    unlike_public,
)
from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import View

TURNS = 40
INPUT_ROUNDS = 10
HEAD_ROUNDS = 5
RATE = 0.02
PRIOR = 0.01


class UnSplit:
    name = "unsplit"
    adversaries = WIRE
    source = "Erdoğan et al., UnSplit (arXiv 2108.09033)"

    def refuses(self, view: View) -> str | None:
        return no_floating_input(view)

    def run(self, view: View) -> InputGuess:
        exchange = view.steps[0][0]
        head = made_up_head(view.job.head)
        inputs = tuple(
            x.requires_grad_() if x.is_floating_point() else x for x in made_up_inputs(view, exchange.samples)
        )
        on_inputs = torch.optim.Adam([x for x in inputs if x.requires_grad], lr=RATE)
        on_head = torch.optim.Adam([p for p in head.parameters() if p.requires_grad], lr=RATE)
        scale = scale_of(exchange.activations)
        for _ in range(TURNS):
            for optimizer, rounds in ((on_inputs, INPUT_ROUNDS), (on_head, HEAD_ROUNDS)):
                for _ in range(rounds):
                    on_inputs.zero_grad()
                    on_head.zero_grad()
                    error = mismatch(crossing(head, inputs), exchange.activations) / scale
                    torch.autograd.backward(
                        error + PRIOR * smooth(inputs[0]) + unlike_public(inputs[0], view)
                    )
                    optimizer.step()
        return InputGuess(inputs=inputs[0].detach(), steps=range(1))


def made_up_head(head: Segment) -> Segment:
    """The same architecture with weights of the adversary's own: of the usual size, freshly drawn.

    Tensors of one dimension (biases, scales) keep the package's values, which initial laws hold constant.
    """
    generator = torch.Generator().manual_seed(1)
    copy = head.spawn()
    with torch.no_grad():
        for parameter in copy.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
                parameter.requires_grad_()
    return copy
