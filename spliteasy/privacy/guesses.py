"""The claims of attacks, and how each is scored against the truth.

An attack returns one `Guess`. Scoring stands apart from attacking, so that no attack can look at the
answers, and all attacks of a kind are measured alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spliteasy.privacy.hijack import HijackGuard
from spliteasy.privacy.limits import LimitKey
from spliteasy.privacy.record import Truth
from spliteasy.privacy.statistics import best_matching, bootstrap, matched_chance, wilson

FALSE_POSITIVES = 0.01
"""Membership is measured where this share of strangers is taken for members."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One measured figure: what was reached, what a guess without knowledge reaches, a 95 % interval."""

    limit: LimitKey
    """The key of `[privacy.limits]` that bounds it."""
    value: float
    chance: float
    low: float
    high: float
    samples: int
    """Distinct samples that the interval counts."""


class Guess(Protocol):
    """A claim about private data."""

    def scores(self, truth: Truth) -> tuple[Score, ...]: ...


@dataclass(frozen=True, kw_only=True)
class LabelGuess:
    """A class for every sample of `steps`. Scores all samples, and the canaries alone."""

    labels: Tensor
    steps: range
    classes: int
    clusters: bool = False
    """The numbers name clusters, not classes."""
    known: frozenset[int] = frozenset()
    """Rows whose label the attack was given: they don't count, nor does any other row of these samples."""

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        true, samples = truth.labels(self.steps), truth.samples(self.steps)
        valid = (true >= 0) & (true < self.classes)
        given = {int(samples[row]) for row in self.known}
        fresh = valid & torch.tensor([int(s) not in given for s in samples])
        canary = fresh & torch.tensor([int(s) in truth.canaries for s in samples])
        named = self.labels
        if self.clusters:
            named = best_matching(self.labels[valid], true[valid], self.classes)[self.labels]
        scores = []
        kinds: tuple[tuple[LimitKey, Tensor], ...] = (("label_recovery", fresh), ("canary_recovery", canary))
        for key, counted in kinds:
            distinct = len(set(samples[counted].tolist()))
            if not distinct:
                continue
            value = float((named == true)[counted].double().mean())
            low, high = wilson(value, distinct)
            chance = self._chance(true, valid, counted, canary=key == "canary_recovery")
            scores.append(Score(limit=key, value=value, chance=chance, low=low, high=high, samples=distinct))
        return tuple(scores)

    def _chance(self, true: Tensor, valid: Tensor, counted: Tensor, *, canary: bool) -> float:
        if self.clusters:
            return matched_chance(self.labels[valid], true[valid], counted[valid], self.classes)
        if canary:
            return 1 / self.classes
        shares = torch.bincount(true[counted], minlength=self.classes).double() / int(counted.sum())
        return float(shares.max())


@dataclass(frozen=True, kw_only=True)
class InputGuess:
    """The first input of the first samples of `steps`, reconstructed: float32 [n, ...]."""

    inputs: Tensor
    steps: range

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        true = truth.first_inputs(self.steps)[: len(self.inputs)].float()
        errors = (self.inputs.float() - true).pow(2).flatten(1).mean(1).nan_to_num(nan=1e6, posinf=1e6)
        mean = truth.first_inputs(range(len(truth.inputs))).float().mean(0)
        low, high = bootstrap(errors)
        chance = float((true - mean).pow(2).mean())
        return (
            Score(
                limit="input_mse",
                value=float(errors.mean()),
                chance=chance,
                low=low,
                high=high,
                samples=len(errors),
            ),
        )

    def beside(self, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
        """(originals, reconstructions, squared errors), the best first."""
        true = truth.first_inputs(self.steps)[: len(self.inputs)].float()
        errors = (self.inputs.float() - true).pow(2).flatten(1).mean(1)
        order = errors.nan_to_num(nan=1e6).argsort()
        return true[order], self.inputs.float()[order], errors[order]


@dataclass(frozen=True, kw_only=True)
class TokenGuess:
    """The tokens of the first samples of `steps`: int64 [n, length]."""

    tokens: Tensor
    steps: range

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        true = truth.first_inputs(self.steps)[: len(self.tokens)]
        hits = (self.tokens == true).double().flatten(1).mean(1)
        most = torch.bincount(true.flatten()).max()
        low, high = bootstrap(hits)
        return (
            Score(
                limit="token_recovery",
                value=float(hits.mean()),
                chance=float(most) / true.numel(),
                low=low,
                high=high,
                samples=len(hits),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class MembershipGuess:
    """The attack's confidence that the device trained on each of the view's candidates: float [n]."""

    confidence: Tensor

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        members = self.confidence[: truth.members].double()
        strangers = self.confidence[truth.members :].double().sort(descending=True).values
        allowed = int(FALSE_POSITIVES * len(strangers))
        found = (members > strangers[allowed]).double()
        low, high = wilson(float(found.mean()), len(found))
        rate = allowed / len(strangers)
        return (
            Score(
                limit="membership_advantage",
                value=max(-rate, float(found.mean()) - rate),
                chance=0.0,
                low=low - rate,
                high=high - rate,
                samples=len(self.confidence),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class LinkGuess:
    """The row of `earlier` that is the same sample, for every row of `later`: int64 [rows]."""

    links: Tensor
    earlier: range
    later: range

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        before, after = truth.samples(self.earlier), truth.samples(self.later)
        there = torch.isin(after, before)
        value = float((before[self.links] == after)[there].double().mean())
        low, high = wilson(value, int(there.sum()))
        return (
            Score(
                limit="linkage",
                value=value,
                chance=1 / len(before),
                low=low,
                high=high,
                samples=int(there.sum()),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class PropertyGuess:
    """The half that each sample of `steps` is in, by a property of its input: bool [samples].

    The property is the mean of the input, above or below the median: the brightness of an image.
    Which half is which is not known, so that both namings are tried.
    """

    halves: Tensor
    steps: range

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        means = truth.first_inputs(self.steps).double().flatten(1).mean(1)
        true = (means > means.median()).long()
        guessed = self.halves.long()
        everything = torch.ones(len(true), dtype=torch.bool)
        value = float((best_matching(guessed, true, 2)[guessed] == true).double().mean())
        distinct = len(set(truth.samples(self.steps).tolist()))
        low, high = wilson(value, distinct)
        chance = matched_chance(guessed, true, everything, 2)
        return (
            Score(
                limit="property_inference", value=value, chance=chance, low=low, high=high, samples=distinct
            ),
        )


@dataclass(frozen=True, kw_only=True)
class AlarmGuess:
    """The gradients that the device's guard gets to see at each step, beside its own labels."""

    returned: Sequence[Tensor]
    sent: Sequence[Tensor]
    hijacked: bool

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        guard = HijackGuard()
        alarms = []
        for index, (returned, sent) in enumerate(zip(self.returned, self.sent, strict=True)):
            guard.saw(returned, sent, truth.labels(range(index, index + 1)))
            alarms.append(guard.alarm)
        count = len(alarms)
        if self.hijacked:
            value = alarms.index(True) / count if True in alarms else 1.0
            key: LimitKey = "hijack_unnoticed"
            return (Score(limit=key, value=value, chance=1.0, low=value, high=value, samples=count),)
        value = sum(alarms) / count
        low, high = wilson(value, count)
        key = "hijack_false_alarms"
        return (Score(limit=key, value=value, chance=0.0, low=low, high=high, samples=count),)


@dataclass(frozen=True)
class OfEvaluations:
    """A claim about evaluations: what it calls steps are places in `View.evaluations`."""

    guess: Guess

    def scores(self, truth: Truth) -> tuple[Score, ...]:
        assert truth.evaluated is not None, "evaluations that were recorded have a truth"
        return self.guess.scores(truth.evaluated)
