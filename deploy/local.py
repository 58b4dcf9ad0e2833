"""The local stack: RabbitMQ, Redis and workers in the background of this machine.

    python -m deploy.local up|down|clean|status|logs|scale|roll

Everything it keeps lies in `.local/` of the current folder: state, logs, pid files, a generated password,
and (while it is up) `stack.json`, where the command line finds broker and store. Twice is harmless.
`up --tls`: everything by TLS with a local authority, and workers that believe enrolled devices only.
Ports come from SPLITEASY_AMQP_PORT and SPLITEASY_REDIS_PORT; with SPLITEASY_METRICS_PORT the workers serve
their metrics at that port and those after it.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.certificates import make_certificates
from deploy.daemons import Daemon
from deploy.services import (
    PORT_VARIABLES,
    RABBITMQ,
    REDIS,
    Access,
    ComposeServices,
    NativeServices,
    Services,
    docker_answers,
    free_port,
    native_missing,
)
from spliteasy.errors import SplitEasyError, UserError
from spliteasy.logs import redact

FOLDER = Path(".local")
STACK = FOLDER / "stack.json"
CERTIFICATES = FOLDER / "tls"
WORKERS = FOLDER / "workers.enrol"
"""The workers' account, where they do not share the operator's."""
SIGNING_KEY = FOLDER / "operator.key"
"""`submit` signs with it here, and `enroll` gives devices its public half."""
PASSWORD, WORKER_PASSWORD = FOLDER / "password", FOLDER / "worker-password"
"""Of the operator, and of the workers' user of Redis."""
AMQP_PORT = (PORT_VARIABLES[RABBITMQ], 5672)
REDIS_PORT = (PORT_VARIABLES[REDIS], 6379)
METRICS_PORT = "SPLITEASY_METRICS_PORT"
NOWHERE = Access(amqp_port=1, redis_port=1, management_port=1, password="-")  # noqa: S106
"""For stopping and deleting, which need to know neither ports nor password."""

WORKERS_SERVE_S = 90.0
DRAIN_S = 25.0
POLL_S = 0.3
MAX_WORKERS = 256


@dataclass(frozen=True, slots=True)
class Stack:
    """The stack as it is up, or is to be."""

    kind: str
    """`native` or `compose`."""
    access: Access

    @property
    def services(self) -> Services:
        if self.kind == "native":
            return NativeServices(FOLDER, self.access)
        return ComposeServices(self.access)

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {"SPLITEASY_BROKER": self.access.broker, "SPLITEASY_STORE": self.access.store}

    def write(self) -> None:
        """Say in `stack.json` where it is."""
        write_private(
            STACK,
            json.dumps(
                {
                    "broker": self.access.broker,
                    "store": self.access.store,
                    "management": self.access.management,
                    "kind": self.kind,
                    "amqp_port": self.access.amqp_port,
                    "redis_port": self.access.redis_port,
                    "management_port": self.access.management_port,
                    "tls": self.access.tls is not None,
                },
                indent=2,
            ),
        )


def running_stack() -> Stack | None:
    """The stack as it was brought up; None where it is down."""
    try:
        stored = json.loads(STACK.read_text())
    except FileNotFoundError:
        return None
    # What an older version wrote may lack a port: it can still be stopped.
    ports = {name: stored.get(name, 1) for name in ("amqp_port", "redis_port", "management_port")}
    tls = make_certificates(CERTIFICATES) if stored.get("tls") else None
    access = Access(**ports, password=password(), worker_password=password(WORKER_PASSWORD), tls=tls)
    return Stack(stored["kind"], access)


def wanted_stack(*, tls: bool) -> Stack:
    """The stack that the environment asks for. Raises UserError where it can't be."""
    missing = native_missing()
    if missing and not docker_answers():
        raise UserError(
            f"{' and '.join(missing)} not installed, and no Docker daemon answers",
            hint="make deps installs them through apt",
        )
    if missing and tls:
        raise UserError(
            f"TLS needs native servers, and {' and '.join(missing)} are not installed",
            hint="make deps installs them through apt",
        )
    access = Access(
        amqp_port=port(*AMQP_PORT),
        redis_port=port(*REDIS_PORT),
        management_port=free_port(),
        password=password(),
        worker_password=password(WORKER_PASSWORD),
        tls=make_certificates(CERTIFICATES) if tls else None,
    )
    return Stack("compose" if missing else "native", access)


def up(workers: int, tls: bool = False) -> None:
    """Start what does not run yet, and wait until it serves. Raises UserError, SplitEasyError.

    With `tls`, workers have an account of their own and believe enrolled devices only.
    """
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    running = running_stack()
    if running is not None:
        check_same(running.access, tls=tls)
    stack = running or wanted_stack(tls=tls)
    stack.services.start()
    stack.write()
    make_key()
    if stack.access.tls is not None and not WORKERS.exists():
        enroll_workers(stack)
    start_workers(stack, max(workers, len(running_workers())))
    command = Path(sys.executable).with_name("spliteasy")
    program = os.path.relpath(command) if command.exists() else "spliteasy"
    agent = f"{program} agent --job digits --device phone-1 --data examples.digits:device_data"
    if stack.access.tls is not None:
        agent = f"""{program} enroll phone-1 --job digits
  {program} agent --enrolment phone-1.enrol --data examples.digits:device_data"""
    print(f"""
RabbitMQ   {redact(stack.access.broker)}
Redis      {redact(stack.access.store)}
workers    {len(running_workers())}
The passwords are in {STACK}; commands started in this folder find them there.

Next, each in a terminal of its own:
  {program} submit examples/digits/job.toml
  {agent}
  {program} status
More workers: make scale WORKERS=4.  Also: make status, make logs, make down.""")


def make_key() -> None:
    """The operator's key that the stack's jobs are signed with, where there is none yet."""
    if not SIGNING_KEY.exists():
        spliteasy("no key to sign jobs with", "keygen", str(SIGNING_KEY))


def enroll_workers(stack: Stack) -> None:
    """Make the account that all workers use. Raises SplitEasyError."""
    environment = {**stack.environment, "SPLITEASY_MANAGEMENT": stack.access.management}
    command = ("enroll", "workers", "--worker", "--out", str(WORKERS))
    spliteasy("the workers have no account", *command, environment=environment)


def spliteasy(problem: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command of ours. Raises SplitEasyError, which begins with the problem."""
    ran = subprocess.run(
        [sys.executable, "-m", "spliteasy.cli", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SplitEasyError(f"{problem}: {ran.stderr.strip()}")


def check_same(access: Access, *, tls: bool) -> None:
    """Raises UserError where other ports are asked for than those it is up on, or TLS where there is none,
    and where an older version brought it up.
    """
    if access.management_port == NOWHERE.management_port:
        raise UserError("the local stack was brought up by an older version", hint="make down first")
    if tls and access.tls is None:
        raise UserError("the local stack is up without TLS", hint="make down first")
    for (variable, _), have in ((AMQP_PORT, access.amqp_port), (REDIS_PORT, access.redis_port)):
        if port(variable, have) != have:
            raise UserError(
                f"the local stack is up on port {have}, {variable} asks for {os.environ[variable]}",
                hint="make down first",
            )


def start_workers(stack: Stack, count: int) -> None:
    """Start workers up to `count`, and wait until all serve. Raises SplitEasyError."""
    have = {daemon.name for daemon in running_workers()}
    free = (f"worker-{n}" for n in range(1, MAX_WORKERS + 1) if f"worker-{n}" not in have)
    started = [Daemon(next(free), FOLDER) for _ in range(count - len(have))]
    environment = {**stack.environment, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if stack.access.tls is not None:
        # The operator's accounts are none of their business.
        del environment["SPLITEASY_BROKER"]
        environment["SPLITEASY_STORE"] = stack.access.worker_store
    for daemon in started:
        print(f"starting {daemon.name}", flush=True)
        name = f"local-{daemon.name}"
        account = ["--trust", "open"] if stack.access.tls is None else ["--enrolment", str(WORKERS)]
        command = [sys.executable, "-m", "spliteasy.cli", "worker", "--name", name, *account]
        daemon.start(command, {**environment, **metrics_port(daemon)})
    if started:
        wait_for_workers(stack, started)


def metrics_port(daemon: Daemon) -> dict[str, str]:
    """Where METRICS_PORT is set, worker n serves its metrics n - 1 ports above it. Raises UserError."""
    if METRICS_PORT not in os.environ:
        return {}
    number = int(daemon.name.removeprefix("worker-"))
    return {METRICS_PORT: str(port(METRICS_PORT, 0) + number - 1)}


def wait_for_workers(stack: Stack, started: Sequence[Daemon]) -> None:
    """Return when all of `started` serve; raises SplitEasyError where one ends, or it takes too long."""
    deadline = time.monotonic() + WORKERS_SERVE_S
    wanted = {daemon.pid() for daemon in started}
    while not wanted <= serving_pids(stack):
        for daemon in started:
            if daemon.pid() is None:
                raise SplitEasyError(f"{daemon.name} ended: {daemon.last_words(1)}", hint="see `make logs`")
        if time.monotonic() > deadline:
            raise SplitEasyError(
                f"the workers do not serve after {WORKERS_SERVE_S:.0f} s", hint="see `make logs`"
            )
        time.sleep(POLL_S)


def serving_pids(stack: Stack) -> set[int | None]:
    """The pids of the workers that serve, as `spliteasy status` sees them."""
    seen = subprocess.run(
        [sys.executable, "-m", "spliteasy.cli", "status", "--json"],
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if seen.returncode != 0:
        return set()
    return {worker["pid"] for worker in json.loads(seen.stdout)["workers"] if worker["state"] == "serving"}


def scale(workers: int) -> None:
    """Start or drain workers until there are so many. Raises UserError, SplitEasyError."""
    stack = running_stack()
    if stack is None:
        raise UserError("the local stack is not up", hint="make up")
    stop_workers(running_workers()[workers:])
    start_workers(stack, workers)
    print(f"workers    {len(running_workers())}")


def roll() -> None:
    """Replace the workers one by one, each new one serving before an old one leaves."""
    if (stack := running_stack()) is None:
        raise UserError("the local stack is not up", hint="make up")
    for daemon in running_workers():
        start_workers(stack, len(running_workers()) + 1)
        stop_workers([daemon])


def stop_workers(daemons: Sequence[Daemon]) -> None:
    """Let them drain, side by side."""
    for daemon in daemons:
        print(f"stopping {daemon.name}", flush=True)
        daemon.ask_to_stop()
    for daemon in daemons:
        daemon.wait_stopped(DRAIN_S)


def down() -> None:
    """Stop everything; the state stays."""
    stop_workers(running_workers())
    if (stack := running_stack()) is not None:
        stack.services.stop()
        STACK.unlink()
    else:
        NativeServices(FOLDER, NOWHERE).stop()  # what an `up` that was killed left behind
    if FOLDER.exists():
        print(f"the local stack is down; its state stays in {FOLDER} (make clean deletes it)")


def clean() -> None:
    """Stop everything and delete its state."""
    stack = running_stack()
    down()
    if stack is not None:
        stack.services.delete()
    elif native_missing() and docker_answers():
        ComposeServices(NOWHERE).delete()
    shutil.rmtree(FOLDER, ignore_errors=True)


def status() -> None:
    """Say what runs, then what `spliteasy status` says."""
    stack = running_stack()
    if stack is None:
        print("the local stack is down (make up starts it)")
        return
    urls = {RABBITMQ: stack.access.broker, REDIS: stack.access.store}
    for name, runs in stack.services.running().items():
        print(f"{name:10} {'runs' if runs else 'DOES NOT RUN':14} {redact(urls[name])}")
    for daemon in running_workers():
        print(f"{daemon.name:10} {'runs':14} pid {daemon.pid()}")
    print(flush=True)
    subprocess.run([sys.executable, "-m", "spliteasy.cli", "status"], check=False)


def logs() -> None:
    """Follow all logs (on a terminal), or print their ends. Raises UserError where there are none."""
    files = sorted(str(file) for file in FOLDER.rglob("logs/*.log"))
    if not files:
        raise UserError("there are no logs", hint="make up")
    follow = ["-F"] if sys.stdout.isatty() else []
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", "40", *follow, *files])  # noqa: S606


def running_workers() -> list[Daemon]:
    """The stack's workers that run, by number."""
    names = sorted(
        (file.stem for file in (FOLDER / "run").glob("worker-*.pid")),
        key=lambda name: int(name.partition("-")[2]),
    )
    return [daemon for name in names if (daemon := Daemon(name, FOLDER)).pid() is not None]


def password(file: Path = PASSWORD) -> str:
    """A password of the stack: generated once, readable by this user only."""
    if not file.exists():
        write_private(file, secrets.token_urlsafe(24))
    return file.read_text()


def write_private(file: Path, text: str) -> None:
    """Write the file whole, with mode 0600 from its first moment on."""
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    os.replace(temporary, file)


def port(variable: str, default: int) -> int:
    """The port that the environment names. Raises UserError."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise UserError(f"{variable}={text} is no port", hint="a number from 1 to 65535")
    return int(text)


COMMANDS: dict[str, Callable[..., None]] = {
    "up": up,
    "scale": scale,
    "roll": roll,
    "down": down,
    "clean": clean,
    "status": status,
    "logs": logs,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local", description="The local stack.")
    commands = parser.add_subparsers(dest="command", required=True)
    up_parser = commands.add_parser("up", help="start what does not run yet")
    up_parser.add_argument("--workers", type=int, default=2)
    up_parser.add_argument("--tls", action="store_true", help="TLS only, and enrolled devices only")
    commands.add_parser("scale", help="change the number of workers").add_argument("workers", type=int)
    for name, text in (
        ("roll", "replace the workers one by one"),
        ("down", "stop it; the state stays"),
        ("clean", "stop it and delete its state"),
        ("status", "what runs"),
        ("logs", "follow the logs"),
    ):
        commands.add_parser(name, help=text)
    arguments = vars(parser.parse_args(argv))
    run = COMMANDS[arguments.pop("command")]
    try:
        if not 0 <= arguments.get("workers", 0) <= MAX_WORKERS:
            raise UserError(f"{arguments['workers']} workers can't be", hint=f"0 to {MAX_WORKERS}")
        run(**arguments)
    except SplitEasyError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
