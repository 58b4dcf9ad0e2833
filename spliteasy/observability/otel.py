"""Traces for OpenTelemetry: spans go to a collector by OTLP over HTTP, in batches, from their own thread.

The only module that imports OpenTelemetry (extra `otel`).
"""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from spliteasy.observability.traces import Context, Span


class OtelTracer:
    """Sends spans to the collector at `url` (`http://127.0.0.1:4318`). What it can't take is dropped."""

    def __init__(self, url: str, *, service: str, instance: str) -> None:
        exporter = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=5)
        self._processor = BatchSpanProcessor(exporter)
        self._resource = Resource({"service.name": service, "service.instance.id": instance})
        self._scope = InstrumentationScope("spliteasy")

    def record(self, span: Span, /) -> None:
        parent = span.parent and Context(span.context.trace, span.parent)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_of(span.context, remote=False),
                parent=_of(parent, remote=True) if parent else None,
                resource=self._resource,
                attributes=dict(span.attributes),
                start_time=span.began_ns,
                end_time=span.ended_ns,
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> None:
        """Send what is left; gives up after some seconds."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def _of(context: Context, *, remote: bool) -> SpanContext:
    return SpanContext(
        int(context.trace, 16), int(context.span, 16), is_remote=remote, trace_flags=TraceFlags(1)
    )
