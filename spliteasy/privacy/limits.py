"""The bounds of `[privacy.limits]`, and when a score passes one."""

from __future__ import annotations

from typing import Literal, get_args

LimitKey = Literal[
    "label_recovery",
    "canary_recovery",
    "input_mse",
    "token_recovery",
    "membership_advantage",
    "property_inference",
    "linkage",
    "hijack_unnoticed",
    "hijack_false_alarms",
]
LIMIT_KEYS: tuple[LimitKey, ...] = get_args(LimitKey)

AT_LEAST: frozenset[LimitKey] = frozenset({"input_mse"})
"""Bounds from below: an error that an attack must not fall under. All others are bounds from above."""


def passes(key: LimitKey, value: float, limit: float) -> bool:
    """Return whether the value keeps to the limit."""
    return value >= limit if key in AT_LEAST else value <= limit


def leaks(key: LimitKey, value: float, chance: float) -> float:
    """Return how far the value is from chance towards a full leak: 0 is chance or worse, 1 is everything."""
    if key in AT_LEAST:
        return max(0.0, 1 - value / chance) if chance > 0 else 0.0
    return max(0.0, (value - chance) / (1 - chance)) if chance < 1 else 0.0
