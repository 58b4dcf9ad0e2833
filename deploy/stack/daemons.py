"""Background processes with a pid file and a log file each."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Daemon:
    """One background process, known by its name in a state folder.

    The pid file holds the process's start time too: a pid that the system gave to somebody else since is
    not ours, and never gets a signal.
    """

    name: str
    folder: Path

    @property
    def pid_file(self) -> Path:
        return self.folder / "run" / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    def pid(self) -> int | None:
        """The process id; None where it does not run."""
        try:
            pid, _, started = self.pid_file.read_text().partition(" ")
        except FileNotFoundError:
            return None
        return int(pid) if started and started == start_time(int(pid)) else None

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], *, cwd: Path | None = None
    ) -> None:
        """Start it in a session of its own, appending to its log; nothing where it runs already.

        `cwd`: its current folder; None: ours.
        """
        if self.pid() is not None:
            return
        for file in (self.pid_file, self.log_file):
            file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid_file.write_text(f"{process.pid} {start_time(process.pid)}")
        # Should it end before we do, somebody must take note, or it stays behind as a zombie.
        threading.Thread(target=process.wait, daemon=True).start()

    def ask_to_stop(self) -> None:
        """Send SIGTERM; nothing where it does not run."""
        if (pid := self.pid()) is not None:
            os.kill(pid, signal.SIGTERM)

    def wait_stopped(self, timeout_s: float) -> None:
        """Wait for its end, and force it after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (pid := self.pid()) is not None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline += timeout_s
            time.sleep(POLL_S)
        self.pid_file.unlink(missing_ok=True)

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        try:
            return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def start_time(pid: int) -> str | None:
    """Return when the process started, in the system's own notation, or None where it does not run (or is a
    zombie)."""
    proc = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = proc.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return None if fields[0] in "ZX" else fields[19]
    listed = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout.strip() or None
