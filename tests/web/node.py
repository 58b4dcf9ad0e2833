"""The tool chain of the browser's agent: Node, and the packages that its lock file names."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "device_agent" / "web"
INSTALLED = WEB / "node_modules" / ".package-lock.json"
LEAST_NODE = 20


def node() -> str:
    """The path of a Node that is new enough; skips the test where there is none."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed (on Debian or Ubuntu: sudo apt-get install nodejs npm)")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < LEAST_NODE:
        pytest.skip(f"Node {version} is older than {LEAST_NODE}")
    return found


def packages() -> str:
    """Node's path, once the packages of the lock file are installed; skips the test where npm gets none."""
    found = node()
    with (WEB / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not _is_installed():
            _install()
    return found


def run(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command in the agent's folder; the test fails with all that it printed."""
    done = subprocess.run(
        command, cwd=WEB, capture_output=True, text=True, timeout=500, env={**os.environ, **(env or {})}
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"


def _is_installed() -> bool:
    return INSTALLED.exists() and INSTALLED.stat().st_mtime >= (WEB / "package-lock.json").stat().st_mtime


def _install() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed (on Debian or Ubuntu: sudo apt-get install npm)")
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=WEB,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        pytest.skip(f"npm can't install the packages of the lock file: {done.stderr.strip()[-300:]}")
    INSTALLED.touch()
