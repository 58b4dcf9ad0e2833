"""`make up TLS=1`: the whole of it encrypted, an account for each device, and one for the workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import finish, read_until, started
from tests.cli.test_stack import DIGITS, Place, free_port, holders_of

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]
AGENT = ("agent", "--data", "examples.digits:device_data")


def test_an_enrolled_device_on_the_encrypted_stack(tmp_path: Path) -> None:
    place = Place(tmp_path, free_port(), free_port())
    try:
        ran = place.local("up", "--tls", "--workers", 1)
        assert ran.returncode == 0, ran.stderr
        assert "agent --enrolment phone-1.enrol" in ran.stdout
        stack = place.stack
        schemes = [stack[name].partition(":")[0] for name in ("broker", "store", "management")]
        assert schemes == ["amqps", "rediss", "https"]
        worker = next((tmp_path / ".local/logs").glob("worker-*.log")).read_text()
        assert "amqps://workers:***@127.0.0.1" in worker
        assert "trust is open" not in worker
        (pid_file,) = (tmp_path / ".local/run").glob("worker-*.pid")
        environment = Path(f"/proc/{pid_file.read_text().split()[0]}/environ").read_bytes()
        folder = tmp_path / ".local"
        operator, workers = ((folder / name).read_text() for name in ("password", "worker-password"))
        assert operator.encode() not in environment
        assert f"SPLITEASY_STORE=rediss://workers:{workers}@".encode() in environment
        account = json.loads((folder / "workers.enrol").read_text())["password"]
        assert place.spliteasy("submit", DIGITS).returncode == 0

        ran = place.spliteasy("device", "enroll", "phone-1", "--job", "digits")
        assert ran.returncode == 0, ran.stderr
        assert json.loads((tmp_path / "phone-1.enrol").read_text())["operator_key"], "and the job is signed"
        command = (*AGENT, "--enrolment", "phone-1.enrol", "--state", "state-1")
        with started(command, tmp_path, SPLITEASY_BROKER="", SPLITEASY_STORE="") as agent:
            read_until(agent, '"step":60')
            again = place.spliteasy("device", "enroll", "phone-1", "--job", "digits")
            assert again.returncode == 0, again.stderr
            assert "done, 360 steps" in finish(agent)
        (seen,) = json.loads(place.spliteasy("device", "list", "--json").stdout)
        assert (seen["device"], seen["job"], seen["step"]) == ("phone-1", "digits", 360)

        device = json.loads((tmp_path / "phone-1.enrol").read_text())["password"]
        assert holders_of(operator, tmp_path) == {"password", "stack.json", "rabbitmq.conf"}
        assert holders_of(workers, tmp_path) == {"worker-password"}
        assert holders_of(account, tmp_path) == {"workers.enrol"}
        assert holders_of(device, tmp_path) == {"phone-1.enrol"}

        ran = place.local("up", "--tls", "--workers", 1)
        assert ran.returncode == 0, ran.stderr
        assert place.spliteasy("device", "revoke", "phone-1").returncode == 0
        assert json.loads(place.spliteasy("device", "list", "--json").stdout) == []
    finally:
        place.local("clean")
    assert not (tmp_path / ".local").exists()


def test_tls_is_not_turned_on_under_a_running_stack(tmp_path: Path) -> None:
    place = Place(tmp_path, free_port(), free_port())
    try:
        assert place.local("up", "--workers", 0).returncode == 0
        ran = place.local("up", "--tls", "--workers", 0)
        assert ran.returncode == 2
        assert "up without TLS (make down first)" in ran.stderr
    finally:
        place.local("clean")
