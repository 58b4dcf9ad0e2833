"""The common part of servers from native binaries: ports, private files, the wait until one serves."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from deploy.stack.daemons import Daemon
from spliteasy.errors import UserError

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Return whether a server could listen on that port of 127.0.0.1."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def write_private(file: Path, text: str, *, mode: int = 0o600) -> None:
    """Write the file whole, readable by nobody else from its first moment on."""
    temporary = file.with_name(f"{file.name}.tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode), "w") as out:
        out.write(text)
    os.replace(temporary, file)


def wait_until_serving(
    name: str, server: Daemon, serves: Callable[[], bool], *, timeout_s: float, poll_s: float
) -> None:
    """Return once it serves. Raises UserError where it ends before, or takes too long."""
    deadline = time.monotonic() + timeout_s
    while not serves():
        if server.pid() is None:
            raise UserError(f"{name} stopped while starting: {server.last_words()}")
        if time.monotonic() > deadline:
            raise UserError(f"{name} does not serve after {timeout_s:.0f} s", hint=f"see {server.log_file}")
        time.sleep(poll_s)
