"""Observations that a running agent reports: one small record a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTaken:
    """Step `step` of `total_steps` took effect on both sides. Bytes are totals of this run."""

    device: str
    step: int
    total_steps: int
    epoch: int
    loss: float | None
    """None where it was not measured: no element of the batch had a label."""
    samples: int
    seconds: float
    """The time since the step's head began, with reconnects within it."""
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The test data went through the split after `step`. What could not be measured is None."""

    device: str
    step: int
    samples: int
    loss: float | None
    accuracy: float | None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """The metrics that the job names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundEnded:
    """The device goes on from the mean of round `round` (0: from the initial model), after `step` steps."""

    device: str
    round: int
    record: str
    """The record that decided the round, by its digest."""
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """`connected`, `disconnected`, `resumed at step 7`, …"""

    device: str
    text: str


Observation = StepTaken | Evaluated | RoundEnded | StateChanged
Observe = Callable[[Observation], None]
