"""A `Meter` that Prometheus reads. Needs the extra `metrics`; imported only where it was asked for."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from spliteasy.observability.meter import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PrometheusMeter:
    """Holds the declared metrics in a registry of its own, with the process's memory and CPU beside them."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in metrics:
            self._register(metric)

    def _register(self, metric: Metric) -> None:
        name, text, labels, registry = metric.name, metric.help, metric.labels, self._registry
        match metric.kind:
            case "counter":
                self._counters[name] = Counter(name, text, labels, registry=registry)
            case "gauge":
                self._gauges[name] = Gauge(name, text, labels, registry=registry)
            case "histogram":
                self._histograms[name] = Histogram(
                    name, text, labels, registry=registry, buckets=metric.buckets
                )

    def add(self, metric: Metric, amount: float = 1.0, /, *labels: str) -> None:
        counter = self._counters[metric.name]
        (counter.labels(*labels) if labels else counter).inc(amount)

    def set(self, metric: Metric, value: float, /, *labels: str) -> None:
        gauge = self._gauges[metric.name]
        (gauge.labels(*labels) if labels else gauge).set(value)

    def observe(self, metric: Metric, value: float, /, *labels: str) -> None:
        histogram = self._histograms[metric.name]
        (histogram.labels(*labels) if labels else histogram).observe(value)

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
