"""A RabbitMQ node that this project starts itself: native binaries, any user, one folder, loopback only.

For the tests and the local stack. The packages' wrappers refuse all users but `rabbitmq`, so the scripts
behind them are called. The node's state, logs, pids, cookie and configuration stay in its folder.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from deploy.nodes.certificates import TlsFiles
from deploy.nodes.native import HOST, is_free, wait_until_serving, write_private
from deploy.stack.daemons import Daemon
from spliteasy.errors import UserError

POLL_S = 0.1
START_S = 90.0
STOP_S = 30.0
WAL_BYTES = 64 << 20
"""The quorum queues' log; it wants three times that in memory, and 512 MiB is the default."""
FRAME_MAX_BYTES = (1 << 20) + (64 << 10)
"""A chunk of ours is then one frame of AMQP, not eight: clients spend less on it."""

ADVANCED = "[{ra, [{wal_write_strategy, sync_after_notify}]}].\n"
"""A setting that rabbitmq.conf can't express: a quorum queue hands a message on once it is written, and syncs
then.

Sound here, as is `quorum_queue.compute_checksums = false`: nothing rests on the broker's disk. A device keeps
its requests until their GRADIENT and asks for replies, so a machine that loses power costs time only. A
broker that is killed has lost nothing: the system has what it wrote.
"""

LARGE_BINARIES = "+MBsbct 4096 +MBsmbcs 16384 +MBlmbcs 65536"
"""Frames of 1 MiB come from memory that is kept, not from the system each: page faults cost the most."""
_LOOPBACK_ONLY = "-kernel inet_dist_use_interface {127,0,0,1}"
_NO_BUSY_WAIT = "+sbwt none +sbwtdcpu none +sbwtdio none"
"""Schedulers sleep when they have nothing to do: here the workers need the cores."""
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


def find_scripts() -> Path:
    """The folder of RabbitMQ's own scripts. Raises `UserError` where RabbitMQ or Erlang is not installed."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"))
    home = os.environ.get("RABBITMQ_HOME")
    if home:
        found.append(Path(home) / "sbin")
    missing = [name for name in ("erl", "epmd") if shutil.which(name) is None]
    if not found or missing:
        raise UserError(
            f"RabbitMQ is not installed (no {' and no '.join(missing) or 'rabbitmq-server'} here)",
            hint="run `make deps`, or install rabbitmq-server, or set RABBITMQ_HOME to where it is unpacked",
        )
    return found[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RabbitNode:
    """One node: where it lives, its ports on 127.0.0.1, and the account it is first started with."""

    folder: Path
    port: int
    dist_port: int
    epmd_port: int
    management_port: int | None = None
    """The port of the HTTP interface, or None to run without it."""
    user: str = "spliteasy"
    password: str
    tls: TlsFiles | None = None
    """With these files, all ports speak TLS (1.2 and up) only."""

    def url(self, vhost: str = "/") -> str:
        account = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        path = f"{account}@{HOST}:{self.port}/{'' if vhost == '/' else quote(vhost, safe='')}"
        return f"amqps://{path}?cafile={quote(str(self.tls.ca))}" if self.tls else f"amqp://{path}"

    @property
    def pid(self) -> int | None:
        """The node's process id; None where it does not run."""
        return self._server.pid()

    @property
    def running(self) -> bool:
        return self.pid is not None

    def start(self, timeout_s: float = START_S) -> None:
        """Start it and wait until it serves; nothing but the wait where it runs already.

        Raises `UserError` where RabbitMQ is not installed, a port is taken, or it does not come up; then
        nothing is left running.
        """
        scripts = find_scripts()
        if not self.running:
            self._epmd.ask_to_stop()
            self._epmd.wait_stopped(STOP_S)
            self._check_ports()
            self._write_configuration()
            environment = self._environment()
            # In its folder: Erlang leaves files wherever it is started.
            epmd = ["epmd", "-address", HOST, "-port", str(self.epmd_port)]
            self._epmd.start(epmd, environment, cwd=self.folder)
            self._server.start([str(scripts / "rabbitmq-server")], environment, cwd=self.folder)
        try:
            self.wait_until_serving(timeout_s)
        except UserError:
            self.stop()
            raise

    def wait_until_serving(self, timeout_s: float) -> None:
        """Return once clients are answered. Raises `UserError` where it ends before, or takes too long."""
        wait_until_serving(
            "RabbitMQ",
            self._server,
            lambda: _speaks_amqp(self.port, self.tls),
            timeout_s=timeout_s,
            poll_s=POLL_S,
        )

    def stop(self, timeout_s: float = STOP_S) -> None:
        """Stop it in order, with its epmd; force it after `timeout_s`."""
        for daemon in (self._server, self._epmd):
            daemon.ask_to_stop()
            daemon.wait_stopped(timeout_s)

    def kill(self) -> None:
        """End it without a chance to say goodbye, as a crash does; `start` brings it back with its state."""
        for daemon in (self._server, self._epmd):
            if (pid := daemon.pid()) is not None:
                os.kill(pid, signal.SIGKILL)
            daemon.wait_stopped(STOP_S)

    def sync_queues(self) -> None:
        """Put on disk that quorum queues were declared. RabbitMQ 3.10 does so every 5 s only, and a queue
        declared in the last seconds before a crash never has a leader again.
        """
        self.ctl("eval", "[dets:sync(Table) || Table <- dets:all()].")

    def ctl(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """Run rabbitmqctl against it; what it prints. Raises `UserError`."""
        run = subprocess.run(
            [str(find_scripts() / "rabbitmqctl"), "--quiet", *arguments],
            env={**os.environ, **self._environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if run.returncode:
            reason = " ".join((run.stderr or run.stdout).split())[:500]
            raise UserError(f"rabbitmqctl {arguments[0]} failed: {reason}")
        return run.stdout

    # Helpers ---------------------------------------------------------------------------------------

    @property
    def _server(self) -> Daemon:
        return Daemon("rabbitmq", self.folder)

    @property
    def _epmd(self) -> Daemon:
        return Daemon("epmd", self.folder)

    def _check_ports(self) -> None:
        for port in (self.port, self.dist_port, self.epmd_port, self.management_port):
            if port is not None and not is_free(port):
                raise UserError(
                    f"port {port} on {HOST} is in use by another program",
                    hint="stop it, or choose other ports",
                )

    def _write_configuration(self) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            write_private(cookie, secrets.token_hex(16), mode=0o400)
        lines = [
            *self._listeners(),
            f"default_user = {self.user}",
            f"default_pass = {self.password}",
            f"raft.wal_max_size_bytes = {WAL_BYTES}",
            "quorum_queue.compute_checksums = false",
            "disk_free_limit.absolute = 200MB",
            f"frame_max = {FRAME_MAX_BYTES}",
        ]
        write_private(self.folder / "rabbitmq.conf", "\n".join(lines) + "\n")
        (self.folder / "advanced.config").write_text(ADVANCED)
        plugins = "rabbitmq_management" if self.management_port is not None else ""
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")

    def _listeners(self) -> list[str]:
        """Lines of rabbitmq.conf. Certificates of clients are not asked for: they have passwords."""
        kind = "ssl" if self.tls else "tcp"
        lines = [f"listeners.{kind}.default = {HOST}:{self.port}"]
        if self.management_port is not None:
            lines += [f"management.{kind}.ip = {HOST}", f"management.{kind}.port = {self.management_port}"]
        if self.tls is None:
            return lines
        lines += ["listeners.tcp = none", "ssl_options.verify = verify_none"]
        for prefix in ("ssl_options", *(["management.ssl"] if self.management_port is not None else [])):
            lines += [
                f"{prefix}.cacertfile = {self.tls.ca}",
                f"{prefix}.certfile = {self.tls.certificate}",
                f"{prefix}.keyfile = {self.tls.key}",
                f"{prefix}.versions.1 = tlsv1.3",
                f"{prefix}.versions.2 = tlsv1.2",
            ]
        return lines

    def _environment(self) -> dict[str, str]:
        folder = self.folder.absolute()
        return {
            "HOME": str(folder / "home"),
            "ERL_CRASH_DUMP": str(folder / "logs" / "erl_crash.dump"),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": "spliteasy@localhost",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "generated"),
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_LOOPBACK_ONLY} {_NO_BUSY_WAIT} {LARGE_BINARIES}",
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_ONLY,
            # The script then becomes the Erlang process: its pid is the node's.
            "detached": "true",
        }


def _speaks_amqp(port: int, tls: TlsFiles | None) -> bool:
    """Return whether a broker answers a client's greeting: the listener opens when the node has booted."""
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection((HOST, port), timeout=5))
            if tls is not None:
                connection = opened.enter_context(tls.context().wrap_socket(connection, server_hostname=HOST))
            connection.sendall(_PROTOCOL_HEADER)
            return connection.recv(1) == b"\x01"
    except OSError:
        return False
