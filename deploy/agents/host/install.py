"""A wheel in a virtual environment of its own, made once for a wheel and a way of installing it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.agents.host.home import Home, HostError
from deploy.agents.host.settings import Settings

INSTALLED = "installed.json"
"""This file is written last: an environment without it is half made, and is made again."""
WATCH_S = 0.2


def install(settings: Settings, home: Home, name: str, wheel: bytes) -> Path:
    """Return the environment with the wheel. Raises HostError; nothing that runs is touched."""
    how = [list(settings.extras), list(settings.pip_options), settings.system_site_packages, sys.executable]
    said = json.dumps([*how, platform.python_version(), sorted(settings.environment.items())])
    identity = hashlib.sha256(wheel + said.encode()).hexdigest()[:12]
    venv = home.folder / "venvs" / identity
    if (venv / INSTALLED).exists():
        return venv
    shutil.rmtree(venv, ignore_errors=True)
    venv.parent.mkdir(exist_ok=True)
    file = home.folder / name
    home.put(file, wheel)
    environment = {**os.environ, **settings.environment}
    try:
        site = ["--system-site-packages"] if settings.system_site_packages else []
        _run(
            [sys.executable, "-m", "venv", *site, str(venv)],
            environment,
            "no virtual environment could be made",
            "on Debian, Ubuntu and Raspberry Pi OS: sudo apt-get install python3-venv",
        )
        extras = f"[{','.join(settings.extras)}]" if settings.extras else ""
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        _run(
            [*pip, "--quiet", *settings.pip_options, f"{file}{extras}"],
            environment,
            "pip could not install the wheel",
            "is there room, and can the device reach a package index? pip_options says where to look",
        )
        home.put(venv / INSTALLED, said.encode())
    except BaseException:
        shutil.rmtree(venv, ignore_errors=True)
        raise
    finally:
        file.unlink()
    return venv


def _run(command: Sequence[str], environment: dict[str, str], failed: str, hint: str) -> None:
    """Run to its end, or until the operator's side has gone. Raises HostError."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        said = b""
        open_ends = [process.stdout.fileno(), sys.stdin.fileno()]
        while process.stdout.fileno() in open_ends:
            for end in select.select(open_ends, [], [], WATCH_S)[0]:
                data = os.read(end, 1 << 16)
                if end == process.stdout.fileno():
                    said = (said + data)[-4000:]
                    if not data:
                        open_ends.remove(end)
                elif not data:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise HostError("stopped by the operator; what ran before still runs")
    if process.returncode:
        words = " | ".join(said.decode(errors="replace").strip().splitlines()[-3:])
        raise HostError(f"{failed}: {words or f'exit code {process.returncode}'}", hint)
