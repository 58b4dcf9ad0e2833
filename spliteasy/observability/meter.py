"""The seam of metrics: what is measured is declared once, and reported to a `Meter` that is passed in.

Library code knows this file alone. Nobody listens by default (`SILENT`);
`spliteasy.observability.prometheus` listens where a person asked for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of a duration's buckets, in seconds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A counter's name ends in `_total`; a unit other than a count stands in the name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = SECONDS


class Meter(Protocol):
    """Takes what happened. Label values come in the metric's order. Cheap, and never raises for a value."""

    def add(self, metric: Metric, amount: float = 1.0, /, *labels: str) -> None:
        """Raise a counter."""
        ...

    def set(self, metric: Metric, value: float, /, *labels: str) -> None:
        """Set a gauge."""
        ...

    def observe(self, metric: Metric, value: float, /, *labels: str) -> None:
        """Count a value into a histogram."""
        ...


class Silent:
    """The meter that nobody reads."""

    def add(self, metric: Metric, amount: float = 1.0, /, *labels: str) -> None:
        return

    def set(self, metric: Metric, value: float, /, *labels: str) -> None:
        return

    def observe(self, metric: Metric, value: float, /, *labels: str) -> None:
        return


SILENT: Meter = Silent()
