"""`spliteasy gateway` as processes: side by side, killed, asked how they are, and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from broker import connect
from device_agent.observations import Observation, StepTaken
from spliteasy_cli import main
from spliteasy_cli.support.enrolment import Enrolment
from tests.attack.arena import Arena, open_arena
from tests.broker.proxy import Balancer
from tests.fixtures_rabbitmq import RabbitBroker, free_ports

HOST = "127.0.0.1"
DEVICE = "phone-7"


@pytest.fixture
async def arena(rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tmp_path: Path) -> AsyncIterator[Arena]:
    async with open_arena(rabbitmq_broker.node, rabbitmq_vhost, tmp_path) as arena:
        yield arena


@asynccontextmanager
async def running(broker: str, port: int, metrics_port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A gateway that listens; killed at the end where it still runs."""
    words = ["gateway", "--broker", broker, "--listen", f"{HOST}:{port}", "--metrics-port", str(metrics_port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "spliteasy_cli", *words,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        while b"gateway at " not in (line := await process.stdout.readline()):
            assert line, "it ended before it served"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def page(port: int, name: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/{name}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.rabbitmq
async def test_an_agent_trains_on_through_the_others_when_a_gateway_is_killed(arena: Arena) -> None:
    """Two processes behind a balancer: the weights are those of a run without a wire (`Arena.train`)."""
    first, second, *metrics_ports = free_ports(4)
    broker = arena.node.url(arena.vhost)
    arena.enroll(DEVICE)
    async with asyncio.timeout(120), AsyncExitStack() as stack:
        processes = [
            await stack.enter_async_context(running(broker, port, metrics_port))
            for port, metrics_port in zip((first, second), metrics_ports, strict=True)
        ]
        assert (await asyncio.to_thread(page, metrics_ports[0], "healthz"))[0] == 200
        assert await asyncio.to_thread(page, metrics_ports[0], "readyz") == (200, "ready\n")
        balancer = await stack.enter_async_context(Balancer([first, second]))
        connected = 0

        async def connect_by_balancer() -> object:
            nonlocal connected
            connected += 1
            return await connect(f"ws://{DEVICE}:{arena.password(DEVICE)}@{HOST}:{balancer.port}")

        def observe(told: Observation) -> None:
            if isinstance(told, StepTaken) and told.step == 2:
                processes[1].send_signal(signal.SIGKILL)  # the one that the balancer chose first

        result = await arena.train(DEVICE, observe=observe, connect=connect_by_balancer)  # type: ignore[arg-type]
        assert result.done
        assert connected >= 2
        assert await processes[1].wait() == -signal.SIGKILL
        _, measured = await asyncio.to_thread(page, metrics_ports[0], "metrics")
        assert "spliteasy_gateway_accepted_total 1.0" in measured
        assert 'spliteasy_gateway_frames_total{direction="down"}' in measured
        processes[0].send_signal(signal.SIGTERM)
        assert await processes[0].wait() == 0


async def test_a_gateway_without_its_broker_is_alive_but_not_ready() -> None:
    port, metrics_port, closed = free_ports(3)
    async with asyncio.timeout(60), running(f"amqp://{HOST}:{closed}/", port, metrics_port):
        assert (await asyncio.to_thread(page, metrics_port, "healthz"))[0] == 200
        status, why = await asyncio.to_thread(page, metrics_port, "readyz")
        assert (status, why) == (503, f"the broker at {HOST}:{closed} can't be reached\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--listen", "0.0.0.0:0"], "in the clear"),
        (["--listen", "here"], "is no HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "is no HOST:PORT"),
        (["--cert", "x.pem"], "go together"),
        (["--cert", "x.pem", "--key", "x.key"], "are of no use"),
        (["--origin", "example.com"], "is no origin"),
        (["--origin", "https://example.com/page"], "is no origin"),
        (["--broker", "ws://a:b@127.0.0.1:1"], "stands before a broker"),
        (["--broker", "amqp://a:s3cret/b@127.0.0.1:1"], "quote what is special"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "--broker", "amqp://127.0.0.1/", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "s3cret" not in said


def test_an_enrolment_may_name_a_gateway() -> None:
    enrolment = Enrolment(account=DEVICE, password=SecretStr("a/b"), broker="wss://gate.example:8443")
    assert enrolment.url == "wss://phone-7:a%2Fb@gate.example:8443"
