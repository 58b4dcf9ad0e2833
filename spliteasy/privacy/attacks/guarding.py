"""The other side of FSHA: how soon a guard on the device notices it, and how often it cries wolf.

No attack, but judged as one: against an active worker by the share of the training that passes unnoticed,
against an honest worker by the share of steps with a false alarm.

Source: see `spliteasy.privacy.hijack`.
"""

from __future__ import annotations

from spliteasy.privacy.attacks.base import no_classes
from spliteasy.privacy.guesses import AlarmGuess
from spliteasy.privacy.record import Adversary, View


class HijackGuard:
    name = "hijack-guard"
    adversaries = frozenset({Adversary.ACTIVE, Adversary.WORKER})
    source = "Fu et al. (NDSS 2023); Erdoğan et al., SplitOut (arXiv 2302.08618)"

    def refuses(self, view: View) -> str | None:
        return no_classes(view)

    def run(self, view: View) -> AlarmGuess:
        each = [range(index, index + 1) for index in range(len(view.steps))]
        return AlarmGuess(
            returned=[view.gradients(step) for step in each],
            sent=[view.output_gradients(step) for step in each],
            hijacked=view.hijacker is not None,
        )
