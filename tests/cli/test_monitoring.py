"""A worker as a process on a real broker: its pages of metrics and health, and the live view of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from server_worker import metrics
from server_worker.config import CLAIM_S, amqp_heartbeat_s
from spliteasy.runtime.worker_defaults import TAKEOVER_S
from tests.cli.conftest import Project, Ran, finish, read_until, started
from tests.fixtures_rabbitmq import RabbitBroker


def read(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def address_of(process: subprocess.Popen[str]) -> str:
    """Return the address at which a process serves its metrics, from its log."""
    assert process.stdout is not None
    for line in process.stdout:
        entry = json.loads(line)
        if entry["event"] == "metrics":
            url: str = entry["url"]
            return url.removesuffix("/metrics")
    raise AssertionError("never said where its metrics are")


@pytest.mark.rabbitmq
def test_a_worker_serves_its_metrics_and_the_watch_sees_it_come_and_go(
    rabbitmq_url: str, rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tmp_path: Path
) -> None:
    there = {"SPLITEASY_BROKER": rabbitmq_url, "SPLITEASY_STORE": f"sqlite:///{tmp_path}/store.sqlite"}
    command = ("worker", "--name", "w-1", "--trust", "open", "--metrics-port", 0)
    with ExitStack() as stack:
        view = stack.enter_context(started(("status", "--watch", "--every-s", 0.2), tmp_path, **there))
        read_until(view, "watching: 0 sessions, 0 workers")
        worker = stack.enter_context(started(command, tmp_path, **there))
        address = address_of(worker)
        read_until(worker, '"serving"')
        assert read(f"{address}/readyz") == (200, "ready\n")
        assert read(f"{address}/healthz") == (200, "alive\n")
        status, text = read(f"{address}/metrics")
        assert status == 200
        assert all(f"# TYPE {metric.name} " in text for metric in metrics.ALL)
        assert 'spliteasy_worker_store_calls_total{call="heartbeat",outcome="Done"}' in text
        agreed: list[int] = []
        while sorted(agreed) != [1, 1, 5, 5]:  # the view's too; the broker lists connections a moment later
            connections = rabbitmq_broker.call("GET", f"vhosts/{rabbitmq_vhost}/connections")
            agreed = [one["timeout"] for one in connections if "timeout" in one]
            assert set(agreed) <= {amqp_heartbeat_s(TAKEOVER_S), 5}
        assert "spliteasy_worker_session_limit_bytes 4.294967296e+09" in text
        read_until(view, "worker w-1: joined")
        worker.send_signal(signal.SIGTERM)
        finish(worker)
        read_until(view, "worker w-1: gone")
        view.send_signal(signal.SIGINT)
        finish(view)


def test_a_silent_workers_sessions_move_within_the_time_that_was_asked_for() -> None:
    """RabbitMQ waits for three heartbeats at most; each is as long as that allows, and at least 1 s."""
    for takeover_s in range(5, 200):
        beat_s = amqp_heartbeat_s(takeover_s)
        assert beat_s >= 1
        assert 3 * beat_s + CLAIM_S <= takeover_s < 3 * (beat_s + 1) + CLAIM_S
    with pytest.raises(ValueError, match="under 5 s"):
        amqp_heartbeat_s(4)


def test_without_its_package_the_port_is_refused(
    spliteasy: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "spliteasy.observability.prometheus", raising=False)
    command = "agent --job x --device d --data m:f --broker amqp://localhost --metrics-port 0"
    ran = spliteasy(*command.split())
    assert "--metrics-port needs the package prometheus_client" in ran.error
    assert "spliteasy[metrics]" in ran.error


@pytest.mark.rabbitmq
def test_an_agent_serves_its_metrics_and_keeps_its_history(
    rabbitmq_url: str, tmp_path: Path, new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=2000)
    there = {"SPLITEASY_BROKER": rabbitmq_url, "SPLITEASY_STORE": f"sqlite:///{tmp_path}/store.sqlite"}
    with started(("submit", project.job_file), project.folder, **there) as submit:
        finish(submit)
    command = ("agent", "--job", "tiny", "--device", "phone-1", "--data", f"{project.module}:device_data")
    asked = ("--metrics-port", 0, "--history", "kept")
    with (
        started(("worker", "--trust", "open"), tmp_path, **there) as worker,
        started((*command, *asked), project.folder, **there) as agent,
    ):
        address = address_of(agent)
        read_until(agent, '"progress"')
        assert read(f"{address}/readyz") == (200, "ready\n")
        text = read(f"{address}/metrics")[1]
        assert "spliteasy_agent_link_up 1.0" in text
        assert "spliteasy_agent_total_steps 10000.0" in text
        steps = float(text.partition("\nspliteasy_agent_steps_total ")[2].split()[0])
        assert steps > 0
        for process in (agent, worker):
            process.send_signal(signal.SIGTERM)
            finish(process)
    kept = (project.folder / "kept/phone-1.jsonl").read_text().splitlines()
    told = [line["step"] for line in map(json.loads, kept) if line["event"] == "step"]
    assert told == list(range(1, len(told) + 1))
    assert len(told) >= steps
