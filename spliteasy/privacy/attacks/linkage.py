"""Linkage: find the same sample again in the next epoch by what its activations look like.

Anybody who links the epochs of one sample can average noise away, and follow one person's record.

Source: own; the nearest-neighbour form of record linkage.
"""

from __future__ import annotations

from spliteasy.privacy.attacks.base import WIRE
from spliteasy.privacy.guesses import LinkGuess
from spliteasy.privacy.record import View
from spliteasy.privacy.statistics import normalized


class Linkage:
    name = "linkage"
    adversaries = WIRE
    source = "own: nearest neighbour among the activations of two epochs"

    def refuses(self, view: View) -> str | None:
        two = view.last_epoch.start >= view.steps_per_epoch
        return None if two else "fewer than two epochs were recorded"

    def run(self, view: View) -> LinkGuess:
        later = view.last_epoch
        earlier = range(later.start - view.steps_per_epoch, later.start)
        before, after = view.activations(earlier), view.activations(later)
        alike = normalized(after - after.mean(0)) @ normalized(before - before.mean(0)).T
        return LinkGuess(links=alike.argmax(1), earlier=earlier, later=later)
