"""Evaluations: what a worker reads off test samples, whose activations cross again and again.

Nothing trains on them, and yet each evaluation sends the same samples under the newest head, without dropout.
The attacks on training steps are played on them: the labels that a tail which was followed says of b, the
inputs that a head which is known sends a for, and the same sample found again in the next evaluation.

Source: as `tail_tracking`, `inversion` and `linkage`; own for the evaluations.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from spliteasy.privacy.attacks.base import believed_head, no_classes, no_floating_input
from spliteasy.privacy.attacks.inversion import invert
from spliteasy.privacy.attacks.tail_tracking import TailTracking, follow
from spliteasy.privacy.guesses import Guess, InputGuess, LabelGuess, LinkGuess, OfEvaluations
from spliteasy.privacy.record import Adversary, View, rows_of
from spliteasy.privacy.statistics import normalized
from spliteasy.training.segment_trainer import tensors_of

SHOWN = 64


def _none(view: View) -> str | None:
    return None if view.evaluations else "no evaluation was recorded"


class EvaluationLabels:
    name = "evaluation-labels"
    adversaries = frozenset({Adversary.WORKER})
    source = "own: the predictions of a tail that was followed"

    def refuses(self, view: View) -> str | None:
        """Return why it can't be tried, or None where it can."""
        return _none(view) or no_classes(view) or TailTracking().refuses(view)

    def run(self, view: View) -> Guess:
        """Return the classes that the tail, as it is after the last step, says of the newest evaluation."""
        assert view.classes is not None
        tail = follow(view)[1].segment.eval()
        newest = _rounds(view)[-1]
        with torch.no_grad():
            made = [tensors_of(tail(*view.evaluations[place].outputs))[0].argmax(1) for place in newest]
        return OfEvaluations(LabelGuess(labels=torch.cat(made), steps=newest, classes=view.classes))


class EvaluationInversion:
    name = "evaluation-inversion"
    adversaries = frozenset({Adversary.WORKER, Adversary.HOLDER})
    source = "He et al. (ACSAC 2019), on evaluations"

    def refuses(self, view: View) -> str | None:
        """Return why it can't be tried, or None where it can."""
        return _none(view) or no_floating_input(view)

    def run(self, view: View) -> Guess:
        """Return inputs of the newest evaluation under the released head, or of the first under the job's."""
        place = (_rounds(view)[-1] if view.released is not None else _rounds(view)[0]).start
        activations = view.evaluations[place].activations
        head = believed_head(view).eval().requires_grad_(False)
        samples = tensors_of(activations)[0].shape[0]
        found = invert(view, head, activations, samples)[:SHOWN]
        return OfEvaluations(InputGuess(inputs=found, steps=range(place, place + 1)))


class EvaluationLinkage:
    name = "evaluation-linkage"
    adversaries = frozenset({Adversary.WORKER})
    source = "own: nearest neighbour among the activations of two evaluations"

    def refuses(self, view: View) -> str | None:
        """Return why it can't be tried, or None where it can."""
        return None if len(_rounds(view)) > 1 else "fewer than two evaluations were recorded"

    def run(self, view: View) -> Guess:
        """Return, for each sample of the newest evaluation, the row of the one before that is most alike."""
        earlier, later = _rounds(view)[-2:]
        before, after = _rows(view, earlier), _rows(view, later)
        alike = normalized(after - after.mean(0)) @ normalized(before - before.mean(0)).T
        return OfEvaluations(LinkGuess(links=alike.argmax(1), earlier=earlier, later=later))


def _rounds(view: View) -> list[range]:
    """The places of each evaluation's batches in `view.evaluations`."""
    found = []
    for _, group in groupby(range(len(view.evaluations)), key=lambda place: view.evaluations[place].step):
        places = list(group)
        found.append(range(places[0], places[-1] + 1))
    return found


def _rows(view: View, places: range) -> Tensor:
    each = [view.evaluations[place].activations for place in places]
    return torch.cat([rows_of(values, tensors_of(values)[0].shape[0]) for values in each])
