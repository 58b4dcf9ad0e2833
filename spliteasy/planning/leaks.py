"""Cuts that are known to tell more than `[privacy.limits]` allows, and what follows from them for others.

What a worker computes of labels it has from the tail's gradients, and what it computes of inputs from the
head's activations. So a limit of labels that does not hold at one cut is taken not to hold behind any tail of
as few layers, and one of inputs behind any head of as few. That is a rule, not a theorem: the gate decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["head", "tail", "pair"]
"""The end that a limit speaks of; "pair": nothing follows for other cuts."""

SIDES: dict[str, Side] = {
    "label_recovery": "tail",
    "canary_recovery": "tail",
    "input_mse": "head",
    "token_recovery": "head",
    "property_inference": "head",
    "linkage": "head",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A limit that does not hold at a pair of cuts, or at a single one."""

    cuts: tuple[str, ...]
    side: Side
    why: str
    """The measure, its value and the attack, for a person."""


Judge = Callable[[tuple[str, ...]], Sequence[Leak]]
"""Measures cuts: what leaks there; nothing where all limits hold."""


@dataclass(frozen=True, slots=True)
class Layers:
    """Modules with weights in head and tail at a cut."""

    places: tuple[int, ...]
    head: float
    tail: float


def reaches(leak: Leak, at: Layers, other: Layers) -> bool:
    """Return whether a leak that was found at one cut is taken to be at another."""
    if leak.side == "head":
        return other.head <= at.head
    if leak.side == "tail":
        return other.tail <= at.tail
    return other.places == at.places
