"""The local stack where the binaries are missing: containers if Docker answers, else what to install.

Docker is a script that writes down how it was called; what needs real servers is in tests/cli/test_stack.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.stack.services import COMPOSE_FILE

ROOT = Path(__file__).resolve().parents[2]
DOCKER = """#!/bin/sh
echo "$SPLITEASY_AMQP_PORT $SPLITEASY_REDIS_PORT ${#SPLITEASY_PASSWORD} $*" >> "$CALLS"
case "$*" in
  *"ps --services"*) cat "$RUNNING" 2>/dev/null ;;
  *"up --detach"*) printf 'rabbitmq\\nredis\\n' > "$RUNNING" ;;
  *" down"*) rm -f "$RUNNING" ;;
esac
exit ${DOCKER_EXIT:-0}
"""


class Machine:
    """A machine without RabbitMQ and Redis, with or without Docker."""

    def __init__(self, folder: Path, *, docker: bool) -> None:
        self.folder = folder
        self.commands = folder / "bin"
        self.commands.mkdir()
        for name in ("cat", "rm", "sh"):
            (self.commands / name).symlink_to(f"/usr/bin/{name}")
        if docker:
            script = self.commands / "docker"
            script.write_text(DOCKER)
            script.chmod(0o755)

    def local(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", *arguments],
            cwd=self.folder,
            env={
                "PATH": str(self.commands),
                "PYTHONPATH": str(ROOT),
                "CALLS": str(self.folder / "calls"),
                "RUNNING": str(self.folder / "running"),
                "SPLITEASY_AMQP_PORT": "25672",
                "SPLITEASY_REDIS_PORT": "26379",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def compose_calls(self) -> list[str]:
        """Return what compose was told since the last look, but for questions."""
        calls = (self.folder / "calls").read_text().splitlines()
        (self.folder / "calls").write_text("")
        prefix = f"compose --file {COMPOSE_FILE} "
        told = [call.split(" ", 3) for call in calls]
        return [
            f"{amqp} {redis} {arguments.removeprefix(prefix)}"
            for amqp, redis, _, arguments in told
            if arguments.startswith(prefix) and "ps --services" not in arguments
        ]


def test_containers_where_docker_answers(tmp_path: Path) -> None:
    machine = Machine(tmp_path, docker=True)
    ran = machine.local("up", "--workers", "0")
    assert ran.returncode == 0, ran.stderr
    assert machine.compose_calls() == ["25672 26379 up --detach --wait"]
    stack = json.loads((tmp_path / ".local/stack.json").read_text())
    assert stack["kind"] == "compose"
    assert stack["broker"].endswith("@127.0.0.1:25672/")
    ran = machine.local("down")
    assert ran.returncode == 0, ran.stderr
    assert machine.compose_calls() == ["25672 26379 down"]
    ran = machine.local("clean")
    assert ran.returncode == 0, ran.stderr
    assert machine.compose_calls()[-1].endswith("down --volumes")
    assert not (tmp_path / ".local").exists()


def test_a_stack_of_an_older_version_can_be_stopped(tmp_path: Path) -> None:
    machine = Machine(tmp_path, docker=True)
    assert machine.local("up", "--workers", "0").returncode == 0
    file = tmp_path / ".local/stack.json"
    stack = json.loads(file.read_text())
    del stack["management"], stack["management_port"]
    file.write_text(json.dumps(stack))
    ran = machine.local("up", "--workers", "0")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "brought up by an older version (make down first)" in ran.stderr
    ran = machine.local("down")
    assert ran.returncode == 0, ran.stderr
    assert machine.compose_calls()[-1] == "25672 26379 down"
    assert not file.exists()


def test_a_new_stack_has_classic_queues_and_keeps_the_type_that_it_was_made_with(tmp_path: Path) -> None:
    machine = Machine(tmp_path, docker=True)
    assert machine.local("up", "--workers", "0").returncode == 0
    file = tmp_path / ".local/queues"
    assert file.read_text() == "classic"
    ran = machine.local("up", "--workers", "0", "--queues", "quorum")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "made with classic queues" in ran.stderr
    assert "QUEUES=classic" in ran.stderr
    assert machine.local("clean").returncode == 0
    assert machine.local("up", "--workers", "0", "--queues", "quorum").returncode == 0
    assert file.read_text() == "quorum"


def test_an_older_stack_says_no_type_of_queues(tmp_path: Path) -> None:
    machine = Machine(tmp_path, docker=True)
    assert machine.local("up", "--workers", "0").returncode == 0
    (tmp_path / ".local/queues").unlink()
    assert machine.local("up", "--workers", "0").returncode == 0
    assert not (tmp_path / ".local/queues").exists()


def test_the_password_is_on_no_command_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path, docker=True)
    assert machine.local("up", "--workers", "0").returncode == 0
    password = (tmp_path / ".local/password").read_text()
    calls = (tmp_path / "calls").read_text()
    assert f" {len(password)} compose" in calls
    assert password not in calls


def test_nothing_to_run_it_with(tmp_path: Path) -> None:
    ran = Machine(tmp_path, docker=False).local("up")
    assert ran.returncode == 2
    assert ran.stderr == (
        "error: RabbitMQ and Redis not installed, and no Docker daemon answers"
        " (make deps installs them through apt)\n"
    )


def test_a_docker_that_does_not_answer(tmp_path: Path) -> None:
    ran = Machine(tmp_path, docker=True).local("up", DOCKER_EXIT="1")
    assert ran.returncode == 2
    assert "no Docker daemon answers" in ran.stderr


@pytest.mark.parametrize("count", ["-1", "257"])
def test_a_number_of_workers_that_can_not_be(count: str, tmp_path: Path) -> None:
    ran = Machine(tmp_path, docker=False).local("up", f"--workers={count}")
    assert ran.returncode == 2
    assert "0 to 256" in ran.stderr
