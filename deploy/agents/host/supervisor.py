"""Keeps one agent running where there is no systemd.

It starts the agent again when it ends unasked, ends it when it takes too much memory, cuts its log, and says
in FOLDER/status.json how it is. The agent's exit codes mean: 0 done, 2 something to mend first; both end it.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

from deploy.agents.host.home import Release

POLL_S = 0.5
STOP_S = 60.0
LOG_BYTES = 10 << 20
LONGEST_PAUSE_S = 300.0
DONE, TO_MEND = 0, 2


class Supervisor:
    """One agent, by its folder's release.json."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._release = Release.from_json((folder / "release.json").read_text())
        self._log = folder / "agent.log"
        self._stopping = False
        self._starts = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._address = f"spliteasy-{secrets.token_hex(16)}"
        self._socket.bind(f"\0{self._address}")
        self._socket.setblocking(False)

    def run(self) -> int:
        """Run until the agent is done, needs mending, or SIGTERM comes."""
        self.catch_signals()
        with self._socket:
            return self._run()

    def _run(self) -> int:
        pause_s = self._release.restart_s
        while True:
            began = time.monotonic()
            code = self._once()
            if self._stopping or code in (DONE, TO_MEND):
                self._say("done" if code == DONE else "stopped" if self._stopping else "failed", code=code)
                return 0 if self._stopping else code
            self._say("restarting", code=code)
            lasted = time.monotonic() - began > LONGEST_PAUSE_S
            pause_s = self._release.restart_s if lasted else min(pause_s * 2, LONGEST_PAUSE_S)
            self._wait(pause_s)
            if self._stopping:
                self._say("stopped", code=code)
                return 0

    def catch_signals(self) -> None:
        """SIGTERM and SIGINT stop the agent, then us."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked_to_stop)

    def _once(self) -> int:
        """Run the agent to its end; its exit code."""
        self._starts += 1
        self._say("starting")
        account = self._release.run_as if os.getuid() == 0 else None
        with self._log.open("ab") as log:
            agent = subprocess.Popen(
                self._release.command,
                cwd=self._release.cwd,
                env={**os.environ, **self._release.environment, "NOTIFY_SOCKET": f"@{self._address}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=account,
                extra_groups=None if account is None else [],
                umask=0o077,
            )
        deadline = None
        while agent.poll() is None:
            self._hear(agent.pid)
            self._cut_log()
            taken = _memory_of(agent.pid)
            if taken > self._release.memory_bytes and deadline is None:
                self._note(f"the agent took {taken >> 20} MiB, more than it may: it is started again")
                agent.terminate()
                deadline = time.monotonic() + STOP_S
            if self._stopping and deadline is None:
                agent.terminate()
                deadline = time.monotonic() + STOP_S
            if deadline is not None and time.monotonic() > deadline:
                agent.kill()
        self._hear(agent.pid, wait_s=0.0)
        # One that was ended for its memory may end well: that is no end of the training.
        return agent.returncode if deadline is None or self._stopping else -signal.SIGTERM

    def _hear(self, pid: int, wait_s: float = POLL_S) -> None:
        if select.select([self._socket], [], [], wait_s)[0]:
            said = self._socket.recv(4096).decode(errors="replace")
            if "READY=1" in said.split("\n"):
                self._say("ready", pid=pid, text=said.partition("STATUS=")[2])

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            time.sleep(min(POLL_S, seconds))

    def _asked_to_stop(self, *_: object) -> None:
        self._stopping = True

    def _say(self, state: str, **more: object) -> None:
        temporary = self._folder / "status.json.tmp"
        said = {"state": state, "starts": self._starts, "supervisor": os.getpid(), **more}
        temporary.write_text(json.dumps(said))
        temporary.replace(self._folder / "status.json")

    def _note(self, text: str) -> None:
        with self._log.open("a") as log:
            log.write(f"{text}\n")

    def _cut_log(self) -> None:
        if self._log.stat().st_size > LOG_BYTES:  # the agent appends, so what was cut leaves no hole
            (self._folder / "agent.log.1").write_bytes(self._log.read_bytes())
            os.truncate(self._log, 0)


def _memory_of(pid: int) -> int:
    """Resident bytes; 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 0
