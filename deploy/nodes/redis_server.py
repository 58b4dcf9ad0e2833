"""A Redis server that this project starts itself: the native binary, any user, one folder, loopback only.

For the tests and the local stack. State, configuration (with the password: never on a command line),
log and pid stay in its folder.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlencode

from deploy.nodes.certificates import TlsFiles
from deploy.nodes.native import HOST, is_free, wait_until_serving, write_private
from deploy.nodes.redis_users import LOSS_WINDOW, NOBODY, RedisUser
from deploy.stack.daemons import Daemon
from spliteasy.errors import UserError

POLL_S = 0.02
START_S = 60.0
STOP_S = 20.0
FREE_S = 1.0

AppendFsync = Literal["always", "everysec", "no", "off"]
"""The moment at which a write is forced to the disk; `off` keeps nothing at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisServer:
    """One server on 127.0.0.1: where it lives, and how it keeps what is written to it."""

    folder: Path
    port: int
    password: str | None = None
    appendfsync: AppendFsync = "everysec"
    maxmemory_bytes: int = 0
    """0: no limit. What would go over it is refused; nothing is ever evicted."""
    tls: TlsFiles | None = None
    """With these files, the server speaks TLS (1.2 and up) only."""
    users: tuple[RedisUser, ...] = ()
    """With users, nobody else is let in, and `password` is not used."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further lines of redis.conf."""

    @property
    def url(self) -> str:
        """Return the URL with the password, or that of the first of its users."""
        if self.users:
            return self.url_of(self.users[0])
        account = f":{quote(self.password, safe='')}@" if self.password else ""
        path = f"{account}{HOST}:{self.port}/0"
        return f"rediss://{path}?ssl_ca_certs={quote(str(self.tls.ca))}" if self.tls else f"redis://{path}"

    def url_of(self, user: RedisUser) -> str:
        """Return the URL of that user, who may not ask what `appendfsync` is."""
        windows = {"always": 0.0, "everysec": 2.0}
        query = {"ssl_ca_certs": str(self.tls.ca)} if self.tls else {}
        query[LOSS_WINDOW] = str(windows.get(self.appendfsync, math.inf))
        account = f"{user.name}:{quote(user.password, safe='')}"
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{account}@{HOST}:{self.port}/0?{urlencode(query)}"

    @property
    def pid(self) -> int | None:
        """The process id; None where it does not run."""
        return self._daemon.pid()

    @property
    def running(self) -> bool:
        return self.pid is not None

    def start(self, timeout_s: float = START_S) -> None:
        """Start it and wait until it serves; nothing but the wait where it runs already.

        Raises `UserError` where Redis is not installed, the port is taken, or it does not come up; then
        nothing is left running.
        """
        binary = find_binary()
        if not self.running:
            self._wait_until_free()
            self._write_configuration()
            self._daemon.start([binary, str(self._configuration)], {})
        try:
            wait_until_serving("Redis", self._daemon, self._answers, timeout_s=timeout_s, poll_s=POLL_S)
        except UserError:
            self.stop()
            raise

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Stop it in order, with all that was written to it on disk; force it after `timeout_s`."""
        self._daemon.ask_to_stop()
        self._daemon.wait_stopped(timeout_s)

    def kill(self) -> None:
        """End it without a chance to say goodbye, as a crash does; `start` brings it back with its state."""
        if (pid := self.pid) is not None:
            os.kill(pid, signal.SIGKILL)
        self._daemon.wait_stopped(STOP_S)

    # Helpers ---------------------------------------------------------------------------------------

    @property
    def _daemon(self) -> Daemon:
        return Daemon("redis", self.folder)

    @property
    def _configuration(self) -> Path:
        return self.folder.absolute() / "redis.conf"

    def _write_configuration(self) -> None:
        data = self.folder.absolute() / "data"
        data.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": HOST,
            "port": "0" if self.tls else str(self.port),
            **(self._tls_settings() if self.tls else {}),
            "dir": _quoted(str(data)),
            "daemonize": "no",
            "save": '""',
            "appendonly": "no" if self.appendfsync == "off" else "yes",
            "appendfsync": "no" if self.appendfsync == "off" else self.appendfsync,
            "maxmemory": str(self.maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            # Tensors hardly compress, and the log is rewritten anyhow once most of it was trimmed.
            "rdbcompression": "no",
            "auto-aof-rewrite-percentage": "300",
            **({"requirepass": _quoted(self.password)} if self.password and not self.users else {}),
            **self.settings,
        }
        users = [NOBODY, *(user.line for user in self.users)] if self.users else []
        text = "".join(f"{name} {value}\n" for name, value in settings.items())
        text += "".join(f"user {line}\n" for line in users)
        write_private(self._configuration, text)

    def _tls_settings(self) -> dict[str, str]:
        assert self.tls is not None
        return {
            "tls-port": str(self.port),
            "tls-ca-cert-file": _quoted(str(self.tls.ca)),
            "tls-cert-file": _quoted(str(self.tls.certificate)),
            "tls-key-file": _quoted(str(self.tls.key)),
            "tls-auth-clients": "no",
            "tls-protocols": '"TLSv1.2 TLSv1.3"',
        }

    def _answers(self) -> bool:
        """Return whether it serves: it lets us in, and has loaded its data."""
        login = self._login()
        try:
            with ExitStack() as opened:
                connection = opened.enter_context(socket.create_connection((HOST, self.port), timeout=5))
                if self.tls is not None:
                    tls = self.tls.context().wrap_socket(connection, server_hostname=HOST)
                    connection = opened.enter_context(tls)
                connection.sendall(login + b"PING\r\n")
                with connection.makefile("rb") as lines:
                    return (not login or lines.readline() == b"+OK\r\n") and lines.readline() == b"+PONG\r\n"
        except OSError:
            return False

    def _login(self) -> bytes:
        """The command that lets us in; empty where everybody is."""
        if self.users:
            words = ["AUTH", self.users[0].name, self.users[0].password]
        elif self.password:
            words = ["AUTH", self.password]
        else:
            return b""
        return b"*%d\r\n" % len(words) + b"".join(
            b"$%d\r\n%s\r\n" % (len(word.encode()), word.encode()) for word in words
        )

    def _wait_until_free(self) -> None:
        # A killed process is gone a moment before its sockets are.
        deadline = time.monotonic() + FREE_S
        while not is_free(self.port):
            if time.monotonic() > deadline:
                raise UserError(
                    f"port {self.port} on {HOST} is in use by another program",
                    hint="stop it, or choose another port",
                )
            time.sleep(POLL_S)


def find_binary() -> str:
    """The path of redis-server (or Valkey's). Raises `UserError` where none is installed."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None:
        raise UserError(
            "Redis is not installed (no redis-server here)", hint="run `make deps`, or install redis-server"
        )
    return found


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
