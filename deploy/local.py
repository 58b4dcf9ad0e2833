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
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deploy.stack.layout import (
    FOLDER,
    NOWHERE,
    SIGNING_KEY,
    STACK,
    WORKERS,
    Stack,
    check_same,
    make_store_key,
    running_stack,
    settle_queues,
    wanted_stack,
)
from deploy.stack.services import (
    RABBITMQ,
    REDIS,
    ComposeServices,
    NativeServices,
    docker_answers,
    native_missing,
)
from deploy.stack.workers import (
    MAX_WORKERS,
    check_shards,
    choose_device,
    enroll_workers,
    running_workers,
    spliteasy,
    start_workers,
    stop_workers,
)
from spliteasy.errors import SplitEasyError, UserError
from spliteasy.observability.logs import redact


def up(
    workers: int,
    tls: bool = False,
    shards: int | None = None,
    queues: str | None = None,
    device: str | None = None,
) -> None:
    """Start what does not run yet, and wait until it serves. Raises UserError, SplitEasyError.

    With `tls`, workers have an account of their own and believe enrolled devices only. `shards` and `queues`
    are for a new stack: one that has another number, or another type of queues, is refused. Workers that are
    started from now on compute on `device`.
    """
    is_new = not FOLDER.exists()
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    queues = settle_queues(queues, is_new=is_new)
    make_store_key(open_too=not is_new)
    running = running_stack()
    if running is not None:
        check_same(running.access, tls=tls)
    stack = running or wanted_stack(tls=tls)
    stack.services.start()
    stack.write()
    make_key()
    if stack.access.tls is not None and not WORKERS.exists():
        enroll_workers(stack)
    if shards is not None:
        check_shards(stack, shards)
    choose_device(device)
    start_workers(stack, max(workers, len(running_workers())), shards, queues)
    _tell_next(stack)


def _tell_next(stack: Stack) -> None:
    """Tell a person where the stack is, and what to type now."""
    command = Path(sys.executable).with_name("spliteasy")
    program = os.path.relpath(command) if command.exists() else "spliteasy"
    agent = f"{program} agent --job digits --device phone-1 --data examples.digits:device_data"
    if stack.access.tls is not None:
        agent = f"""{program} device enroll phone-1 --job digits
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
More workers, up to the number of shards: make scale WORKERS=4.  Also: make status, make logs, make down.""")


def make_key() -> None:
    """The operator's key that the stack's jobs are signed with, where there is none yet."""
    if not SIGNING_KEY.exists():
        spliteasy("no key to sign jobs with", "keygen", str(SIGNING_KEY))


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
    subprocess.run([sys.executable, "-m", "spliteasy_cli", "status"], check=False)


def logs() -> None:
    """Follow all logs (on a terminal), or print their ends. Raises UserError where there are none."""
    files = sorted(str(file) for file in FOLDER.rglob("logs/*.log"))
    if not files:
        raise UserError("there are no logs", hint="make up")
    follow = ["-F"] if sys.stdout.isatty() else []
    sys.stdout.flush()
    os.execvp("tail", ["tail", "-n", "40", *follow, *files])  # noqa: S606


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
    up_parser.add_argument("--shards", type=int, help="of a new stack; 16 where it is left out")
    up_parser.add_argument("--device", help="what workers compute on: cpu, cuda:0, xpu:0, mps; it is kept")
    up_parser.add_argument(
        "--queues", choices=["classic", "quorum"], help="of a new stack; classic where it is left out"
    )
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
        shards = arguments.get("shards")
        if shards is not None and shards < 1:
            raise UserError(f"{shards} shards can't be", hint="1 or more; 16 where it is left out")
        run(**arguments)
    except SplitEasyError as error:
        print(f"error: {redact(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
