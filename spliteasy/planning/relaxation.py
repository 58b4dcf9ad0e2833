"""Find the cuts that meet the constraints and, if none does, say which constraint to relax, and to what."""

from __future__ import annotations

import math
from collections.abc import Mapping

from spliteasy.errors import CutError
from spliteasy.planning.conditions import Constraints

Measures = Mapping[str, float]
"""A cut's measure for each constraint, by the constraint's name."""


class Relaxing:
    """Watches all cuts go by: for each constraint the best measure of those that keep to the others."""

    def __init__(self, constraints: Constraints) -> None:
        given = {
            "device_memory": constraints.device_memory,
            "min_head_layers": constraints.min_head_layers or None,
            "min_tail_layers": constraints.min_tail_layers or None,
            "max_input_correlation": constraints.max_input_correlation,
        }
        self._limits = {name: float(limit) for name, limit in given.items() if limit is not None}
        self._alone: dict[str, float] = {}
        self._others_kept: dict[str, float] = {}

    def violated(self, measures: Measures) -> tuple[str, ...]:
        """The constraints that a cut of these measures does not keep to."""
        return tuple(name for name in self._limits if self._over(name, measures[name]))

    def note(self, measures: Measures) -> None:
        """A legal cut."""
        violated = self.violated(measures)
        for name in self._limits:
            self._alone[name] = self._better(name, self._alone.get(name), measures[name])
            if set(violated) <= {name}:
                kept = self._others_kept.get(name)
                self._others_kept[name] = self._better(name, kept, measures[name])

    def error(self) -> CutError:
        """Return the error that no cut meets all constraints, and say what each alone would have to be."""
        asked = " and ".join(_told(name, limit) for name, limit in self._limits.items())
        ways = [_told(name, value) for name, value in self._others_kept.items()]
        if ways:
            return CutError(f"no cut keeps to {asked}", hint=f"relax it to {', or '.join(ways)}")
        each = ", ".join(_told(name, value) for name, value in self._alone.items())
        return CutError(
            f"no cut keeps to {asked}, nor to all but one of them", hint=f"each alone can be met with {each}"
        )

    def _over(self, name: str, measure: float) -> bool:
        limit = self._limits[name]
        return measure < limit if name.startswith("min_") else measure > limit

    def _better(self, name: str, left: float | None, right: float) -> float:
        if left is None:
            return right
        return max(left, right) if name.startswith("min_") else min(left, right)


def _told(name: str, value: float) -> str:
    """Return the value as it is written on the command line, rounded to the side on which it is still met."""
    if name == "min_tail_layers":
        return f"a tail of {int(value)} or more layers with weights (its gradients would tell the labels)"
    option = f"--{name.replace('_', '-')}"
    if name == "device_memory":
        unit, name = (1e6, "mb") if value >= 1e6 else (1e3, "kb")
        return f"{option} {math.ceil(value * 10 / unit) / 10:g}{name}"
    if name == "max_input_correlation":
        return f"{option} {math.ceil(value * 1000) / 1000:g}"
    return f"{option} {int(value)}"
