"""The Makefile teaches, and says clearly what is missing."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = (
    "setup",
    "demo",
    "up",
    "status",
    "logs",
    "scale",
    "down",
    "clean",
    "deps",
    "lint",
    "test",
    "test-long",
    "simulate",
    "chaos",
)


def make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env={**environment, **({"PATH": path} if path else {})},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_alone_teaches_every_target() -> None:
    ran = make()
    assert ran.returncode == 0
    listed = re.findall(r"^  make ([a-z-]+)", ran.stdout, re.MULTILINE)
    assert set(TARGETS) <= set(listed)
    assert "make demo" in ran.stdout


@pytest.mark.parametrize(
    ("fails_at", "says"),
    [("version_info", "Python 3.11 or newer is needed"), ("ensurepip", "apt-get install python3-venv")],
)
def test_what_set_up_needs_of_python(fails_at: str, says: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *{fails_at}*) exit 1;; esac\nexit 0\n')
    python.chmod(0o755)
    ran = make("setup", f"PYTHON={python}", f"VENV={tmp_path}/venv")
    assert ran.returncode != 0
    assert f"error: {says}" in ran.stderr or says in ran.stderr
    assert not (tmp_path / "venv").exists()


def commands(folder: Path, **scripts: str) -> str:
    """A PATH on which only the basics and `scripts` are found."""
    for name in ("bash", "env", "id", "mktemp", "rm", "tail", "sh"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    for name, text in scripts.items():
        script = folder / name.replace("_", "-")
        script.unlink(missing_ok=True)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    return str(folder)


def install(path: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "deploy/install_deps.sh"), *words],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_root_or_sudo_it_says_what_to_type(tmp_path: Path) -> None:
    path = commands(tmp_path, id="echo 1000", apt_get="exit 0", rabbitmq_server="exit 0")
    ran = install(path)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "type: sudo apt-get install --no-install-recommends redis-server" in ran.stderr


def test_without_apt_it_says_so(tmp_path: Path) -> None:
    ran = install(commands(tmp_path, rabbitmq_server="exit 0"))
    assert ran.returncode == 2
    assert "redis-server missing, and there is no apt here" in ran.stderr


def test_what_is_there_is_not_installed_again(tmp_path: Path) -> None:
    path = commands(tmp_path, redis_server="exit 0", rabbitmq_server="exit 0", apt_get="echo called; exit 1")
    ran = install(path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_the_tests_need_an_ssh_too(tmp_path: Path) -> None:
    path = commands(
        tmp_path,
        id="echo 1000",
        apt_get="exit 0",
        redis_server="exit 0",
        rabbitmq_server="exit 0",
        sshd="exit 0",
    )
    assert install(path).returncode == 0
    ran = install(path, "--tests")
    assert ran.returncode == 2
    assert "type: sudo apt-get install --no-install-recommends openssh-client" in ran.stderr


def test_an_apt_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    path = commands(tmp_path, id="echo 0", rabbitmq_server="exit 0", apt_get="echo no such mirror; exit 100")
    ran = install(path)
    assert ran.returncode == 1
    assert "no such mirror" in ran.stderr
    assert "error: apt could not install redis-server" in ran.stderr


def test_workers_are_told_their_processor() -> None:
    told = make("--dry-run", "up", "DEVICE=cuda:0", "WORKERS=1").stdout
    assert re.search(r"deploy\.local up --workers 1 +--device cuda:0", told)
    assert "--device" not in make("--dry-run", "up").stdout
