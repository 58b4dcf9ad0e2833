"""The two ways to keep an agent running on a device: a systemd unit, or our supervisor."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

from deploy.agents.host.home import Home, Release
from deploy.stack.daemons import Daemon

SYSTEMD, SUPERVISOR = "systemd", "supervisor"
STOP_S = 90.0
POLL_S = 0.1
WORDS = 3
"""Lines of a log that are shown."""


class StartFailed(Exception):
    """The agent did not start, or did not live; the text has its last words."""


class Service(Protocol):
    """Keeps one agent running."""

    def start(self, release: Release) -> None:
        """Return when the agent said that it is ready, and lived on. Raises StartFailed."""
        ...

    def stop(self) -> None:
        """Let it end the current step. It stays stopped until `start`."""
        ...

    def remove(self) -> None:
        """Stop it, and forget it."""
        ...

    def state(self) -> str:
        """Return the service's state in a word or two."""
        ...


def service_of(kind: str, device: str, home: Home, run_as: str) -> Service:
    """Return the service of that kind."""
    return Systemd(device, home, user=run_as or None) if kind == SYSTEMD else Supervised(home)


def has_systemd() -> bool:
    """Return whether systemd runs here, and would keep a service of ours."""
    if not Path("/run/systemd/system").is_dir():
        return False
    return os.getuid() == 0 or _run(["systemctl", "--user", "show-environment"]).returncode == 0


def unit_name(device: str) -> str:
    return f"spliteasy-agent-{device}.service"


def unit(device: str, folder: Path, release: Release, *, user: str | None) -> str:
    """Return the unit's text. `user` runs a system service; None: it is a service of who installs it."""
    environment = [f"Environment={_quoted(f'{name}={value}')}" for name, value in release.environment.items()]
    hardened = [
        f"User={user}",
        "ProtectSystem=strict",
        f"ReadWritePaths={_quoted(str(folder / 'state'))}",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
    ]
    lines = [
        "[Unit]",
        f"Description=SplitEasy agent {device}",
        *(["Wants=network-online.target", "After=network-online.target"] if user else []),
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        "ExecStart=" + " ".join(_quoted(word, command=True) for word in release.command),
        f"WorkingDirectory={release.cwd.replace('%', '%%')}",
        *environment,
        "Restart=on-failure",
        f"RestartSec={release.restart_s:g}",
        "RestartPreventExitStatus=2",
        f"TimeoutStartSec={release.start_s:g}",
        "TimeoutStopSec=60",
        f"MemoryMax={release.memory}",
        "UMask=0077",
        "NoNewPrivileges=yes",
        *(hardened if user else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user' if user else 'default'}.target",
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str, *, command: bool = False) -> str:
    """Quote a word for systemd, so that specifiers, and variables in a command, mean nothing."""
    word = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{word.replace("$", "$$") if command else word}"'


class Systemd:
    """A system service where we are root, else one of the user's."""

    def __init__(self, device: str, home: Home, *, user: str | None) -> None:
        self._name, self._home, self._device = unit_name(device), home, device
        self._user = user if os.getuid() == 0 else None
        place = Path("/etc/systemd/system") if self._user else Path.home() / ".config/systemd/user"
        self._file = place / self._name

    def start(self, release: Release) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(unit(self._device, self._home.folder, release, user=self._user))
        if self._user is None:
            _run(["loginctl", "enable-linger"])  # else it would end with our login
        self._ctl("daemon-reload")
        self._ctl("enable", self._name)
        started = self._ctl("restart", self._name)
        if started.returncode == 0:
            time.sleep(release.settle_s)
        if started.returncode or self.state() not in ("active", "inactive"):  # inactive: done already
            words = _run(["journalctl", *self._scope(), "-u", self._name, "-n", str(WORDS), "-o", "cat"])
            raise StartFailed(_last(words.stdout) or _last(started.stderr) or "see journalctl")

    def stop(self) -> None:
        self._ctl("stop", self._name)

    def remove(self) -> None:
        self._ctl("disable", "--now", self._name)
        self._file.unlink(missing_ok=True)
        self._ctl("daemon-reload")

    def state(self) -> str:
        return self._ctl("is-active", self._name).stdout.strip()

    def _scope(self) -> list[str]:
        return [] if self._user else ["--user"]

    def _ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return _run(["systemctl", *self._scope(), *words])


class Supervised:
    """Our supervisor (`supervisor.py`), in the background."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._daemon = Daemon("supervisor", home.folder)
        self._log = home.folder / "agent.log"

    def start(self, release: Release) -> None:
        (self._home.folder / "status.json").unlink(missing_ok=True)
        said_before = self._log.stat().st_size if self._log.exists() else 0
        supervise(self._home, release)
        deadline = time.monotonic() + release.start_s
        self._wait_while(("", "starting"), deadline)
        self._wait_while(("ready",), time.monotonic() + release.settle_s)
        if self._first() not in ("ready", "done"):
            raise StartFailed(self._words(said_before) or f"it said nothing for {release.start_s:g} s")

    def _wait_while(self, states: tuple[str, ...], deadline: float) -> None:
        while (state := self._first()) in states and time.monotonic() < deadline:
            if self._daemon.pid() is None and self._first() == state:
                raise StartFailed(_last(self._daemon.last_words(WORDS)) or "the supervisor ended")
            time.sleep(POLL_S)

    def stop(self) -> None:
        self._daemon.ask_to_stop()
        self._daemon.wait_stopped(STOP_S)

    def remove(self) -> None:
        self.stop()

    def state(self) -> str:
        state = str(self._told()["state"])
        return state if self._daemon.pid() is not None or state in ("done", "failed") else "stopped"

    def _told(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads((self._home.folder / "status.json").read_text())
        except FileNotFoundError:
            return {"state": "", "starts": 0}
        return told

    def _first(self) -> str:
        """Return the state of the first start; `restarting` where that has ended already."""
        told = self._told()
        return str(told["state"]) if told["starts"] <= 1 else "restarting"

    def _words(self, since: int) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as said:
            said.seek(since)
            return _last(said.read().decode(errors="replace"))


def supervise(home: Home, release: Release) -> None:
    """Start the supervisor, where it does not run."""
    command = [release.python, str(home.program), "supervise", str(home.folder)]
    Daemon("supervisor", home.folder).start(command, {}, cwd=home.folder)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one of systemd's programs, as a login without a session has to. A program that is missing counts as
    failed."""
    environment = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **os.environ}
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def _last(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-WORDS:])
