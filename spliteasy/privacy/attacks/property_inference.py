"""A property of the inputs: which samples are above the median in brightness (the mean of the input).

The adversary runs public data through the head that it knows, and learns to tell the mean of an input from
its activations, by ridge regression. It needs less than a decoder: one number a sample.

Source: Pasquini et al., "Unleashing the tiger" (CCS 2021), property inference.
"""

from __future__ import annotations

from spliteasy.privacy.attacks.base import WIRE, no_auxiliary
from spliteasy.privacy.attacks.decoders import pairs
from spliteasy.privacy.guesses import PropertyGuess
from spliteasy.privacy.record import Adversary, View
from spliteasy.privacy.statistics import ridge


class PropertyInference:
    name = "property"
    adversaries = WIRE | {Adversary.HOLDER}
    source = "Pasquini et al. (CCS 2021)"

    def refuses(self, view: View) -> str | None:
        return no_auxiliary(view)

    def run(self, view: View) -> PropertyGuess:
        learned = pairs(view)
        means = learned.inputs.flatten(1).mean(1, keepdim=True)
        found = ridge(learned.rows, means, view.activations(learned.steps))[:, 0]
        return PropertyGuess(halves=found > found.median(), steps=learned.steps)
