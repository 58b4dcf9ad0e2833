"""A meter that tests read."""

from __future__ import annotations

from spliteasy.observability.meter import Metric


class Recorded:
    """A meter that keeps sums by metric and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def add(self, metric: Metric, amount: float = 1.0, /, *labels: str) -> None:
        assert len(labels) == len(metric.labels)
        key = (metric.name, *labels)
        self.values[key] = self.values.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float, /, *labels: str) -> None:
        assert len(labels) == len(metric.labels)
        self.values[metric.name, *labels] = value

    def observe(self, metric: Metric, value: float, /, *labels: str) -> None:
        assert value >= 0
        self.add(metric, 1, *labels)

    def get(self, metric: Metric, *labels: str) -> float:
        return self.values.get((metric.name, *labels), 0.0)
