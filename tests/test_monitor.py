"""The pages of metrics and health, over real sockets on loopback."""

from __future__ import annotations

import asyncio

import pytest

from spliteasy.errors import UserError
from spliteasy.observability import monitor
from spliteasy.observability.meter import Metric
from spliteasy.observability.monitor import Pages, monitored
from spliteasy.observability.prometheus import CONTENT_TYPE, PrometheusMeter

STEPS = Metric("toy_steps_total", "counter", "Steps.", ("job",))
HELD = Metric("toy_held_bytes", "gauge", "Bytes.")
TOOK = Metric("toy_took_seconds", "histogram", "Seconds.", ("phase",), (0.1, 1.0))


async def get(port: int, request: bytes) -> tuple[int, str]:
    """Status and body of the answer; status 0 where the server hung up without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


def path(name: str, method: str = "GET") -> bytes:
    return f"{method} {name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def pages(meter: PrometheusMeter, reason: str | None = None) -> Pages:
    async def metrics() -> bytes:
        return meter.render()

    async def why_not_ready() -> str | None:
        return reason

    return Pages(metrics=metrics, content_type=CONTENT_TYPE, why_not_ready=why_not_ready)


async def test_counters_gauges_and_histograms_are_told_as_prometheus_reads_them() -> None:
    meter = PrometheusMeter((STEPS, HELD, TOOK))
    meter.add(STEPS, 2, "digits")
    meter.add(STEPS, 1, "digits")
    meter.set(HELD, 7.5)
    meter.observe(TOOK, 0.5, "head")
    async with monitored(pages(meter), port=0) as port:
        status, body = await get(port, path("/metrics?x=1"))
    assert status == 200
    lines = body.splitlines()
    assert 'toy_steps_total{job="digits"} 3.0' in lines
    assert "toy_held_bytes 7.5" in lines
    assert 'toy_took_seconds_bucket{le="0.1",phase="head"} 0.0' in lines
    assert 'toy_took_seconds_bucket{le="1.0",phase="head"} 1.0' in lines


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (path("/healthz"), 200),
        (path("/readyz"), 503),
        (path("/"), 404),
        (path("/metrics", "POST"), 405),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"x" * 20000 + b" HTTP/1.1\r\n\r\n", 0),
    ],
)
async def test_each_request_has_its_status(request_bytes: bytes, status: int) -> None:
    async with monitored(pages(PrometheusMeter(()), "the store does not answer"), port=0) as port:
        answered, body = await get(port, request_bytes)
        assert answered == status
        if status == 503:
            assert body == "the store does not answer\n"
        assert (await get(port, path("/healthz")))[0] == 200, "it lives on"


async def test_a_caller_that_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "REQUEST_S", 0.05)
    async with monitored(pages(PrometheusMeter(())), port=0) as port:
        assert await get(port, b"GET /healthz HTTP/1.1\r\n") == (0, "")


async def test_a_port_that_is_taken_is_said_so() -> None:
    async with monitored(pages(PrometheusMeter(())), port=0) as port:
        with pytest.raises(UserError, match=f"can't listen on 127.0.0.1:{port}"):
            async with monitored(pages(PrometheusMeter(())), port=port):
                raise AssertionError("unreachable")
