"""Label inference with a few known labels: the nearest class by the direction of gb, refined by itself.

The adversary knows the label of some samples of an epoch (at least one a class helps). It takes the mean
direction of each class as the class's centre, gives every sample the nearest centre, takes the means
again, and so on.

Source: Liu et al., similarity-based label inference (arXiv 2203.05222); Fu et al., label inference attacks
(USENIX Security 2022).
"""

from __future__ import annotations

import torch

from spliteasy.privacy.attacks.base import WIRE, no_classes
from spliteasy.privacy.guesses import LabelGuess
from spliteasy.privacy.record import View
from spliteasy.privacy.statistics import normalized

ROUNDS = 5


class FewLabels:
    name = "few-labels"
    adversaries = WIRE
    source = "Liu et al. (arXiv 2203.05222); Fu et al. (USENIX Security 2022)"

    def refuses(self, view: View) -> str | None:
        return no_classes(view) or (None if view.known else "no labels are known")

    def run(self, view: View) -> LabelGuess:
        assert view.classes is not None
        assert view.known is not None
        steps = view.last_epoch
        rows = normalized(view.output_gradients(steps))
        where = torch.tensor(list(view.known))
        told = torch.tensor(list(view.known.values()))
        labels = torch.full((len(rows),), -1)
        labels[where] = told
        centres = torch.zeros(view.classes, rows.shape[1])
        for _ in range(ROUNDS):
            for label in range(view.classes):
                members = rows[labels == label]
                if len(members):
                    centres[label] = members.mean(0)
            labels = (rows @ normalized(centres).T).argmax(1)
            labels[where] = told
        return LabelGuess(labels=labels, steps=steps, classes=view.classes, known=frozenset(view.known))
