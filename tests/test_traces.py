"""Traces: one of each step, joined over agent and worker, as a collector gets them by OTLP."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from broker.protocol import messages as m
from device_agent.config import AgentConfig
from device_agent.spans import traced
from server_worker.spans import spans_of
from spliteasy.observability.traces import Context, Span, Tracer, parse_traceparent, step_context
from testing import serving
from tests.drawn import SECRET
from tests.simulation import toy

PHASES = {"head", "forwarding", "tail", "backwarding", "applying"}
ATTEMPT = m.AttemptRef(number=1, nonce="a" * 16)
ASK: dict[str, Any] = {
    "session": "toy.phone-1",
    "attempt": ATTEMPT,
    "step": 1,
    "about": "b" * 16,
    "about_kind": "FORWARD",
    "forward": "b" * 16,
}


@dataclass
class Collector:
    """An OTLP collector on loopback: each span with its service."""

    url: str
    spans: list[tuple[str, Any]] = field(default_factory=list)


@contextmanager
def collecting() -> Iterator[Collector]:
    collected = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for each in collected.ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {a.key: a.value.string_value for a in each.resource.attributes}["service.name"]
                collector.spans.extend((service, span) for scope in each.scope_spans for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield collector
        finally:
            server.shutdown()
            serving.join()


async def train(
    state: Path, agent_tracer: Tracer | None, worker_tracer: Tracer | None
) -> tuple[int, list[bytes]]:
    """A whole training; its steps, and the requests in the log. The bits must be those without a wire."""
    config = AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=state)
    async with serving(toy.job(toy.Variant()), tracer=worker_tracer) as cluster:
        result, agent = await cluster.train(config, tracer=agent_tracer)
        assert agent.trainer is not None
        expected, found = toy.undisturbed("phone-1", toy.Variant())[0], agent.trainer.state()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
        meta = await cluster.store.session("toy.phone-1")
        assert meta is not None
        log = cluster.store.read_log("toy.phone-1", after=meta.snapshots[0], upto=meta.committed)
        return result.total_steps, [body async for entry in log for body in entry.requests]


async def test_each_step_is_one_trace_over_agent_and_worker(tmp_path: Path) -> None:
    with collecting() as collector:
        from spliteasy.observability.otel import OtelTracer

        with (
            closing(OtelTracer(collector.url, service="agent", instance="phone-1")) as agent,
            closing(OtelTracer(collector.url, service="worker", instance="w1")) as worker,
        ):
            steps, log = await train(tmp_path, agent, worker)
    assert all(b'"traceparent":"00-' in request[:2000] for request in log)
    traces: defaultdict[bytes, list[tuple[str, Any]]] = defaultdict(list)
    for service, span in collector.spans:
        traces[span.trace_id].append((service, span))
    whole = [trace for trace in traces.values() if any(span.name == "step" for _, span in trace)]
    assert len(whole) == steps
    for trace in whole:
        (root,) = [span for _, span in trace if not span.parent_span_id]
        below = {(service, span.name) for service, span in trace if span.parent_span_id == root.span_id}
        assert below == {("agent", phase) for phase in PHASES} | {
            ("worker", "FORWARD"),
            ("worker", "BACKWARD"),
        }
        for request, reply in (("FORWARD", "send FORWARDED"), ("BACKWARD", "send GRADIENT")):
            (served,) = [span for _, span in trace if span.name == request]
            names = {span.name for _, span in trace if span.parent_span_id == served.span_id}
            assert {"wait", reply} <= names
            assert any(name.startswith("compute ") for name in names)
            assert root.start_time_unix_nano <= served.start_time_unix_nano <= served.end_time_unix_nano
        assert len({span.span_id for _, span in trace}) == len(trace)


async def test_nothing_is_made_or_sent_where_nobody_listens(tmp_path: Path) -> None:
    kept: list[Span] = []

    class Kept:
        def record(self, span: Span, /) -> None:
            kept.append(span)

    _, log = await train(tmp_path, None, Kept())
    assert log
    assert not any(b"traceparent" in request for request in log)
    assert kept == []


def test_a_request_that_is_sent_again_is_the_same_bytes() -> None:
    ask = m.Ask(**ASK)
    once, again = traced(ask), traced(ask)
    assert once == again
    assert isinstance(once, m.Ask)
    context = parse_traceparent(once.traceparent)
    assert context == step_context("toy.phone-1", 1, "a" * 16, 1)
    assert context != step_context("toy.phone-1", 2, "a" * 16, 1)
    get_job = m.GetJob(session="toy.phone-1")
    assert traced(get_job) is get_job


@pytest.mark.parametrize(
    "wrong", ["", "00-" + "0" * 47, "00-" + "g" * 32 + "-" + "0" * 16 + "-01", "x" * 5000]
)
def test_a_context_of_another_form_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        m.Ask(**ASK, traceparent=wrong)


def test_a_context_of_zeros_is_none() -> None:
    zeros = m.Ask(**ASK, traceparent=Context("0" * 32, "0" * 16).traceparent)
    assert spans_of(object(), zeros, waited_s=0.0) is None  # type: ignore[arg-type]
