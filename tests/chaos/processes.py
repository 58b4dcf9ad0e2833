"""A child process of ours: started, read, signalled and ended by its pid."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 12
LINE_BYTES = 1 << 20

OnLine = Callable[[dict[str, Any]], None]


class Process:
    """A `spliteasy` command. Its lines go to a log file; those that are JSON to `on_line` as well."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, on_line: OnLine) -> None:
        self._process = process
        self._log = log
        self._on_line = on_line
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        """Those that are for a person: errors, and how it ended."""
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        arguments: Sequence[object],
        *,
        environment: Mapping[str, str],
        log: Path,
        on_line: OnLine = lambda _: None,
    ) -> Process:
        """Start `spliteasy ARGUMENTS` in a session of its own: the terminal's Ctrl-C is not for it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "spliteasy_cli", *map(str, arguments)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_BYTES,
            start_new_session=True,
        )
        return cls(process, log, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send the signal, unless the process has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Return the exit code when the process has ended and all its output was read."""
        code = await self._process.wait()
        await asyncio.shield(self._reading)
        return code

    async def kill(self) -> None:
        """End it at once, paused or not, and see it gone."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("ab") as log:
            async for line in self._process.stdout:
                log.write(line)
                log.flush()
                if line.startswith(b"{"):
                    self._on_line(orjson.loads(line))
                elif text := line.decode(errors="replace").strip():
                    self.last_lines.append(text)
