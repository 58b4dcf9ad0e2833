"""The local stack, and every command on it: real RabbitMQ, real Redis, every part a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, finish, read_until, started

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]
DIGITS = ROOT / "examples/digits/job.toml"
AGENT = ("agent", "--job", "digits", "--data", "examples.digits:device_data")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Place:
    """A folder that a local stack runs in."""

    folder: Path
    amqp_port: int
    redis_port: int

    def local(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run("deploy.local", arguments, environment)

    def spliteasy(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run("spliteasy_cli", arguments, environment)

    def status(self) -> dict[str, Any]:
        ran = self.spliteasy("status", "--json")
        assert ran.returncode == 0, ran.stderr
        picture: dict[str, Any] = json.loads(ran.stdout)
        return picture

    def step(self, session: str) -> int:
        steps = {entry["session"]: entry["step"] for entry in self.status()["sessions"]}
        return int(steps[session])

    @property
    def stack(self) -> dict[str, Any]:
        stack: dict[str, Any] = json.loads((self.folder / ".local/stack.json").read_text())
        return stack

    def _run(
        self, module: str, arguments: tuple[object, ...], environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=self.folder,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("SPLITEASY_")},
                "PYTHONPATH": str(ROOT),
                "SPLITEASY_AMQP_PORT": str(self.amqp_port),
                "SPLITEASY_REDIS_PORT": str(self.redis_port),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A stack that is up, with two workers and the digits job; down and clean at the end."""
    place = Place(tmp_path_factory.mktemp("stack"), free_port(), free_port())
    try:
        ran = place.local("up")
        assert ran.returncode == 0, ran.stderr
        assert "submit examples/digits/job.toml" in ran.stdout
        ran = place.spliteasy("submit", DIGITS)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("submitted digits@")
        yield place
    finally:
        place.local("clean")
        assert not (place.folder / ".local").exists()


def test_up_twice_is_harmless(place: Place) -> None:
    before = {worker["pid"] for worker in place.status()["workers"]}
    ran = place.local("up")
    assert ran.returncode == 0, ran.stderr
    assert "starting" not in ran.stdout
    assert {worker["pid"] for worker in place.status()["workers"]} == before
    assert len(before) == 2


def test_secrets_are_for_this_user_only(place: Place) -> None:
    folder = place.folder / ".local"
    password = (folder / "password").read_text()
    assert len(password) >= 24
    assert folder.stat().st_mode & 0o077 == 0
    assert holders_of(password, folder) == {"password", "stack.json", "rabbitmq.conf", "redis.conf"}
    shown = [place.local("up"), place.local("status"), place.local("logs"), place.spliteasy("status")]
    assert not any(password in ran.stdout + ran.stderr for ran in shown)
    key = (folder / "store.key").read_text()
    assert len(key.strip()) == 64
    assert holders_of(key.strip(), folder) == {"store.key"}
    assert not any(key.strip() in ran.stdout + ran.stderr for ran in shown)


def holders_of(secret: str, folder: Path) -> set[str]:
    """The names of the files that say it, all of them private and none a log; no command line does."""
    lines = Path("/proc").glob("[0-9]*/cmdline")
    assert not any(secret in _text(line) for line in lines)
    holders = [path for path in folder.rglob("*") if path.is_file() and secret in _text(path)]
    assert all(path.stat().st_mode & 0o077 == 0 and path.suffix != ".log" for path in holders)
    return {path.name for path in holders}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""


def test_an_agent_trains_stops_and_goes_on(place: Place) -> None:
    environment = {"SPLITEASY_BROKER": place.stack["broker"]}
    command = [*AGENT, "--device", "phone-1", "--state", "state-1"]
    with started(command, place.folder, **environment) as agent:
        read_until(agent, '"step":60')
        agent.send_signal(signal.SIGTERM)
        assert "stopped after step" in finish(agent)
    stopped_at = place.step("digits.phone-1")
    assert 60 <= stopped_at < 360
    with started(command, place.folder, **environment) as agent:
        out = finish(agent)
    assert f"resumed after step {stopped_at}" in out
    assert "done, 360 steps" in out
    assert place.step("digits.phone-1") == 360


def test_a_worker_that_is_stopped_hands_its_sessions_over(place: Place) -> None:
    environment = {"SPLITEASY_BROKER": place.stack["broker"]}
    with started([*AGENT, "--device", "phone-2", "--state", "state-2"], place.folder, **environment) as agent:
        read_until(agent, '"step":60')
        assert place.local("scale", 4).returncode == 0
        assert len(place.status()["workers"]) == 4
        ran = place.local("scale", 1)
        assert ran.returncode == 0, ran.stderr
        assert [worker["worker"] for worker in place.status()["workers"]] == ["local-worker-1"]
        ran = place.local("roll")
        assert ran.returncode == 0, ran.stderr
        assert [worker["worker"] for worker in place.status()["workers"]] == ["local-worker-2"]
        assert "done, 360 steps" in finish(agent)
    assert place.local("scale", 2).returncode == 0


def test_state_survives_down_and_up(place: Place) -> None:
    sessions = place.status()["sessions"]
    assert sessions
    ran = place.local("down")
    assert ran.returncode == 0, ran.stderr
    assert not (place.folder / ".local/stack.json").exists()
    assert "make up" in place.spliteasy("status").stderr
    assert "down" in place.local("status").stdout
    assert place.local("up").returncode == 0
    assert place.status()["sessions"] == sessions


def test_only_the_stacks_key_opens_its_store(place: Place, tmp_path: Path) -> None:
    """A client with the store's URL and without its key serves nothing, and sees what every command sees."""
    there = {"SPLITEASY_STORE": place.stack["store"], "SPLITEASY_BROKER": place.stack["broker"]}
    other = Place(tmp_path, place.amqp_port, place.redis_port)
    key = tmp_path / "other.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    for arguments, said in (((), "--store-key"), (("--store-key", key), "add that key to the key file")):
        ran = other.spliteasy("worker", "--trust", "open", *arguments, **there)
        assert ran.returncode == 2, ran.stderr
        assert "is sealed with the key" in ran.stderr
        assert said in ran.stderr
    assert place.spliteasy("parity", DIGITS, "--stack", "--store-key", key).returncode == 2
    assert other.spliteasy("session", "list", **there).returncode == 0
    key.chmod(0o644)
    assert "chmod 600" in other.spliteasy("worker", "--store-key", key, **there).stderr


def test_parity_on_the_stack(place: Place) -> None:
    ran = place.spliteasy("parity", DIGITS, "--steps", 30, "--devices", 2, "--stack")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == "max_abs_diff=0"
    assert not any("parity" in entry["session"] for entry in place.status()["sessions"])


def test_status_for_people(place: Place) -> None:
    out = place.spliteasy("status").stdout
    assert all(word in out for word in ("digits", "local-worker-1", "serving", "front", "dead"))
    assert "RabbitMQ   runs" in place.local("status").stdout


def test_pause_resume_and_forget(place: Place) -> None:
    with started(
        [*AGENT, "--device", "phone-3", "--state", "state-3"],
        place.folder,
        SPLITEASY_BROKER=place.stack["broker"],
    ) as agent:
        read_until(agent, '"step":60')
        assert place.spliteasy("session", "pause", "digits.phone-3").returncode == 0
        read_until(agent, "paused by the operator")
        assert place.spliteasy("session", "resume", "digits.phone-3").returncode == 0
        read_until(agent, "going on")
        agent.send_signal(signal.SIGINT)
        finish(agent)
    assert place.spliteasy("session", "forget", "digits.phone-3", "--yes").returncode == 0
    assert "digits.phone-3" not in [entry["session"] for entry in place.status()["sessions"]]
    ran = place.spliteasy("session", "forget", "digits.phone-3", "--yes")
    assert ran.returncode == 2
    assert "no session digits.phone-3" in ran.stderr
    assert "no session digits.phone-3" in place.spliteasy("session", "pause", "digits.phone-3").stderr


def test_an_unknown_job(place: Place) -> None:
    ran = place.spliteasy("agent", "--job", "nojob", "--device", "phone-1", "--data", "m:f", "--state", "s")
    assert ran.returncode != 0
    assert "there is no job nojob" in ran.stderr
    assert "digits" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_second_agent_as_the_same_device(place: Place) -> None:
    environment = {"SPLITEASY_BROKER": place.stack["broker"]}
    with started([*AGENT, "--device", "phone-4", "--state", "state-4"], place.folder, **environment) as agent:
        read_until(agent, '"step":60')
        same_folder = place.spliteasy(*AGENT, "--device", "phone-4", "--state", "state-4")
        assert same_folder.returncode == 2
        assert "state-4 is in use by another agent" in same_folder.stderr
        other_folder = place.spliteasy(*AGENT, "--device", "phone-4", "--state", "state-5")
        assert other_folder.returncode == 2
        assert "another agent runs as this device" in other_folder.stderr
        assert "Traceback" not in other_folder.stderr
        assert "done, 360 steps" in finish(agent)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="mounts a tiny disk")
def test_no_room_for_a_checkpoint(place: Place) -> None:
    """A disk of 120 kB in a mount namespace of its own: it fills after some checkpoints."""
    (place.folder / "disk").mkdir()
    agent = f"{sys.executable} -m spliteasy_cli {' '.join(AGENT)} --device phone-5 --state disk/state"
    script = (
        f"mount -t tmpfs -o size=120k tmpfs disk && {agent}; code=$?; ls disk/state/checkpoints; exit $code"
    )
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPLITEASY_BROKER": place.stack["broker"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    error = ran.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert "free some space" in error
    assert "Traceback" not in ran.stderr
    left = ran.stdout.split()
    assert left
    assert all(name.isdecimal() for name in left), "something half-written was left behind"


@pytest.mark.parametrize("server", ["broker", "store"])
def test_wrong_credentials(server: str, place: Place) -> None:
    password = (place.folder / ".local/password").read_text()
    url = place.stack[server].replace(password, "hunter2")
    ran = place.spliteasy("status", f"--{server}", url)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert len(ran.stderr.splitlines()) == 1
    assert "refused the" in ran.stderr
    assert "hunter2" not in ran.stderr


def test_another_port_while_it_is_up(place: Place) -> None:
    ran = place.local("up", SPLITEASY_AMQP_PORT=str(free_port()))
    assert ran.returncode == 2
    assert "make down first" in ran.stderr


@pytest.mark.parametrize("held", ["SPLITEASY_AMQP_PORT", "SPLITEASY_REDIS_PORT"])
def test_a_port_that_is_held(held: str, tmp_path: Path) -> None:
    ports = {"SPLITEASY_AMQP_PORT": free_port(), "SPLITEASY_REDIS_PORT": free_port()}
    with closing(socket.socket()) as holder:
        holder.bind(("127.0.0.1", ports[held]))
        holder.listen()
        place = Place(tmp_path, *ports.values())
        ran = place.local("up")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert f"port {ports[held]} is in use by something else" in ran.stderr
    assert f"{held}=" in ran.stderr
    assert not list((tmp_path / ".local").rglob("*.pid"))


@pytest.mark.parametrize("port", ["0", "65536", "amqp"])
def test_a_port_that_is_none(port: str, tmp_path: Path) -> None:
    ran = Place(tmp_path, 1, 1).local("up", SPLITEASY_AMQP_PORT=port)
    assert ran.returncode == 2
    assert f"SPLITEASY_AMQP_PORT={port} is no port" in ran.stderr


def test_what_needs_a_stack_says_so(tmp_path: Path) -> None:
    place = Place(tmp_path, 1, 1)
    for command in (("scale", 2), ("roll",), ("logs",)):
        ran = place.local(*command)
        assert ran.returncode == 2
        assert "make up" in ran.stderr
    assert place.local("down").returncode == 0
    assert os.listdir(tmp_path) == []
