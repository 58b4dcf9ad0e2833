"""DP-SGD on a device's data: who is in a batch, how much noise it takes, and what is promised against whom.

Batches are Poisson samples: each sample is drawn by itself with the same probability, from the device's
secret, since that is what the accountant counts. A batch may be empty, and has at most as many samples as
the job allows; the chance of more is a thousandth of δ, which the accountant leaves to it.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch

from spliteasy.errors import DataError, JobError
from spliteasy.graph.segment import Segment
from spliteasy.job.spec import DpSpec, JobSpec
from spliteasy.privacy.defences.accountant import epsilon, noise_for
from spliteasy.privacy.defences.rows import is_batch_first
from spliteasy.privacy.numbers import fill
from spliteasy.runtime.randomness import Key

ADVERSARY = "anybody who has the trained model, or all models of the way there"
NOT_AGAINST = (
    "not against the worker, nor a reader of its store or the wire, who see each sample's activations and "
    "gradients"
)
OVERFLOW = 1e-3
"""The part of δ that is left for batches which would be too large."""


class PoissonBatches:
    """The samples of each step, and what all steps of the job spend."""

    def __init__(self, spec: JobSpec, samples: int, key: Key, *, device: str) -> None:
        """Raises DataError where the job's settings don't fit so many samples."""
        assert spec.privacy.dp is not None
        self.dp: DpSpec = spec.privacy.dp
        self._samples, self._most, self._key = samples, spec.batch_size, key.at("poisson")
        expected = self.dp.expected_batch
        if expected > samples:
            raise DataError(
                f"device {device} has {samples} samples, fewer than [privacy.dp] expected_batch = {expected}",
                hint="lower expected_batch, or train on more samples",
            )
        self.rate = expected / samples
        self.steps_per_epoch = max(1, round(samples / expected))
        self.planned = self.steps_per_epoch * spec.epochs
        """The steps that the budget is for."""
        self._check_room(device)

    @cached_property
    def noise_multiplier(self) -> float:
        """σ in units of the clip. Raises JobError where no noise is enough."""
        if self.dp.noise_multiplier is not None:
            return self.dp.noise_multiplier
        assert self.dp.epsilon is not None
        try:
            return noise_for(
                epsilon_limit=self.dp.epsilon, rate=self.rate, steps=self.planned, delta=self._delta
            )
        except ValueError as error:
            raise JobError(
                f"[privacy.dp]: {error}", hint="raise epsilon or delta, or train fewer epochs"
            ) from error

    def draw(self, step: int) -> list[int]:
        """The samples of `step`, ascending; none is possible."""
        coins = torch.empty(self._samples, dtype=torch.float64)
        fill(coins, "bernoulli", (self.rate,), self._key.at(step))
        drawn: list[int] = coins.nonzero()[:, 0].tolist()
        return drawn[: self._most]

    def spent(self, steps: int) -> float:
        """ε after so many steps, at the job's δ."""
        return epsilon(noise_multiplier=self.noise_multiplier, rate=self.rate, steps=steps, delta=self._delta)

    def guarantee(self) -> str:
        """Say for a person what is promised at the end of the training, and against whom."""
        return (
            f"dp: the model is ({self.spent(self.planned):.3f}, {self.dp.delta:g})-differentially private "
            f"for each of {self._samples} samples (DP-SGD, noise {self.noise_multiplier:.4g}, rate "
            f"{self.rate:.4g}, {self.planned} steps) against {ADVERSARY}; {NOT_AGAINST}"
        )

    @property
    def _delta(self) -> float:
        return self.dp.delta * (1 - OVERFLOW)

    def _check_room(self, device: str) -> None:
        """Refuse a batch_size that Poisson batches may well exceed."""
        allowed = OVERFLOW * self.dp.delta / self.planned
        if _overflow(self._samples, self.rate, self._most) <= allowed:
            return
        needed = self._most
        while _overflow(self._samples, self.rate, needed) > allowed:
            needed += 1
        raise DataError(
            f"device {device} draws {self.dp.expected_batch} of {self._samples} samples on average, and may "
            f"well draw more than batch_size = {self._most}",
            hint=f"set batch_size = {needed} in the job",
        )


def _overflow(samples: int, rate: float, most: int) -> float:
    """A bound on the probability that more than `most` are drawn (Chernoff)."""
    if most >= samples:
        return 0.0
    share = (most + 1) / samples
    if share <= rate:
        return 1.0
    apart = share * math.log(share / rate)
    if share < 1:
        apart += (1 - share) * math.log((1 - share) / (1 - rate))
    return math.exp(-samples * apart)


def check_private(segments: list[Segment], least_samples: int) -> None:
    """Refuse models in which one sample changes another's gradient. Raises JobError."""
    if least_samples > 1:
        raise JobError(
            "[privacy.dp] needs models that train on one sample, and this one does not: batch norm, say, "
            "mixes the samples of a batch",
            hint="put group norm or layer norm in the place of batch norm",
        )
    for segment in segments:
        graph = segment.program.document.train
        if segment.stateful:
            raise JobError(
                f"[privacy.dp]: {segment.name} keeps running statistics of its samples, as batch norm does, "
                "and no noise is on them",
                hint="put group norm or layer norm in the place of batch norm",
            )
        for value in (*graph.inputs, *graph.outputs):
            if value.is_int or not is_batch_first(value):
                raise JobError(
                    f"[privacy.dp]: {value.name} in {segment.name} does not have the samples as its first "
                    "dimension, so that samples can't be clipped one by one",
                    hint="cut elsewhere",
                )
