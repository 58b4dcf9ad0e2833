"""Evaluations and predictions: what a worker reads off samples that nothing trains on.

Each evaluation sends the same test samples under the newest head, without dropout, and each prediction sends
the samples that the trained model is asked about.
The attacks on training steps are played on them: the labels that a tail which was followed says of b, the
inputs that a head which is known sends a for, and the same sample found again, in the next evaluation or in
a prediction.

Source: as `tail_tracking`, `inversion` and `linkage`; own for the evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from spliteasy.privacy.attacks.base import believed_head, no_classes, no_floating_input
from spliteasy.privacy.attacks.inversion import invert
from spliteasy.privacy.attacks.tail_tracking import TailTracking, follow
from spliteasy.privacy.guesses import Guess, InputGuess, LabelGuess, LinkGuess, OfEvaluations
from spliteasy.privacy.record import Adversary, Purpose, View, rows_of
from spliteasy.privacy.statistics import normalized
from spliteasy.training.segment_trainer import tensors_of

SHOWN = 64


def _none(view: View, purpose: Purpose) -> str | None:
    return None if _rounds(view, purpose) else f"no {purpose} was recorded"


@dataclass(frozen=True)
class EvaluationLabels:
    purpose: Purpose = "evaluation"
    adversaries = frozenset({Adversary.WORKER})
    source = "own: the predictions of a tail that was followed"

    @property
    def name(self) -> str:
        return f"{self.purpose}-labels"

    def refuses(self, view: View) -> str | None:
        """Return why it can't be tried, or None where it can."""
        return _none(view, self.purpose) or no_classes(view) or TailTracking().refuses(view)

    def run(self, view: View) -> Guess:
        """Return the classes that the tail, as it is after the last step, says of the newest samples."""
        assert view.classes is not None
        tail = follow(view)[1].segment.eval()
        newest = _rounds(view, self.purpose)[-1]
        with torch.no_grad():
            made = [tensors_of(tail(*view.evaluations[place].outputs))[0].argmax(1) for place in newest]
        return OfEvaluations(LabelGuess(labels=torch.cat(made), steps=newest, classes=view.classes))


@dataclass(frozen=True)
class EvaluationInversion:
    purpose: Purpose = "evaluation"
    adversaries = frozenset({Adversary.WORKER, Adversary.HOLDER})
    source = "He et al. (ACSAC 2019), on samples that nothing trains on"

    @property
    def name(self) -> str:
        return f"{self.purpose}-inversion"

    def refuses(self, view: View) -> str | None:
        """Return why it can't be tried, or None where it can."""
        return _none(view, self.purpose) or no_floating_input(view)

    def run(self, view: View) -> Guess:
        """Return inputs of the newest samples under the released head, or of the first under the job's."""
        place = _rounds(view, self.purpose)[0 if view.released is None else -1].start
        activations = view.evaluations[place].activations
        head = believed_head(view).eval().requires_grad_(False)
        samples = tensors_of(activations)[0].shape[0]
        found = invert(view, head, activations, samples)[:SHOWN]
        return OfEvaluations(InputGuess(inputs=found, steps=range(place, place + 1)))


@dataclass(frozen=True)
class EvaluationLinkage:
    purpose: Purpose = "evaluation"
    adversaries = frozenset({Adversary.WORKER})
    source = "own: nearest neighbour among the activations of evaluations"

    @property
    def name(self) -> str:
        return f"{self.purpose}-linkage"

    def refuses(self, view: View) -> str | None:
        """Return why it can't be tried, or None where it can."""
        if len(_rounds(view, "evaluation")) < 2 and self.purpose == "evaluation":
            return "fewer than two evaluations were recorded"
        return _none(view, "evaluation") or _none(view, self.purpose)

    def run(self, view: View) -> Guess:
        """Return, for each of the newest samples, the row of the evaluation before that is most alike."""
        rounds = _rounds(view, "evaluation")
        if self.purpose == "prediction":
            rounds += _rounds(view, self.purpose)
        earlier, later = rounds[-2:]
        before, after = _rows(view, earlier), _rows(view, later)
        alike = normalized(after - after.mean(0)) @ normalized(before - before.mean(0)).T
        return OfEvaluations(LinkGuess(links=alike.argmax(1), earlier=earlier, later=later))


def _rounds(view: View, purpose: Purpose) -> list[range]:
    """The places in `view.evaluations` of the batches of each evaluation, or of the prediction."""
    places = [place for place, each in enumerate(view.evaluations) if each.purpose == purpose]
    groups = groupby(places, key=lambda place: view.evaluations[place].step)
    return [range(found[0], found[-1] + 1) for found in (list(group) for _, group in groups)]


def _rows(view: View, places: range) -> Tensor:
    each = [view.evaluations[place].activations for place in places]
    return torch.cat([rows_of(values, tensors_of(values)[0].shape[0]) for values in each])
