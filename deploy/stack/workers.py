"""The workers of the local stack: started, waited for, drained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.stack.daemons import Daemon
from deploy.stack.layout import FOLDER, STORE_KEY, WORKERS, Stack, port
from spliteasy.errors import SplitEasyError, UserError

METRICS_PORT = "SPLITEASY_METRICS_PORT"
WORKERS_SERVE_S = 90.0
DRAIN_S = 25.0
POLL_S = 0.3
MAX_WORKERS = 256
DEVICE = FOLDER / "worker-device"
"""The processor that the stack's workers compute on, where one was named."""


def choose_device(device: str | None) -> None:
    """Let the stack's workers compute on that processor from now on; None leaves what was chosen."""
    if device is not None:
        DEVICE.write_text(device + "\n")


def start_workers(stack: Stack, count: int, shards: int | None = None, queues: str | None = None) -> None:
    """Start workers up to `count`, and wait until all serve; the first of a new stack makes its `shards`, and
    `queues` of that type.

    They compute on the processor that was chosen for the stack, or on the CPU. Raises SplitEasyError.
    """
    device = ["--device", DEVICE.read_text().strip()] if DEVICE.exists() else []
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
        key = ["--store-key", str(STORE_KEY)]
        spread = [] if shards is None else ["--shards", str(shards)]
        spread += [] if queues is None else ["--queues", queues]
        command = [sys.executable, "-m", "spliteasy_cli", "worker", "--name", name, *key, *account]
        command += [*spread, *device]
        daemon.start(command, {**environment, **metrics_port(daemon)})
    if started:
        wait_for_workers(stack, started)


def metrics_port(daemon: Daemon) -> dict[str, str]:
    """Return the environment that makes worker n serve its metrics n - 1 ports above METRICS_PORT, where that
    is set. Raises UserError."""
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


def check_shards(stack: Stack, wanted: int) -> None:
    """Raises UserError where the stack has another number of shards than the wanted one."""
    found = len((_status(stack) or {}).get("queues", {}).get("shards", ()))
    if found not in (0, wanted):
        raise UserError(
            f"this stack was made with {found} shards, not {wanted}",
            hint=f"make up, or make up SHARDS={found}; for {wanted}, make a new one: make clean, which "
            f"deletes its state, then make up SHARDS={wanted}",
        )


def serving_pids(stack: Stack) -> set[int | None]:
    """The pids of the workers that serve, as `spliteasy status` sees them."""
    status = _status(stack)
    if status is None:
        return set()
    return {worker["pid"] for worker in status["workers"] if worker["state"] == "serving"}


def _status(stack: Stack) -> dict[str, Any] | None:
    """Return what `spliteasy status` sees; None where broker or store do not answer."""
    seen = subprocess.run(
        [sys.executable, "-m", "spliteasy_cli", "status", "--json"],
        env={**os.environ, **stack.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if seen.returncode != 0:
        return None
    status: dict[str, Any] = json.loads(seen.stdout)
    return status


def stop_workers(daemons: Sequence[Daemon]) -> None:
    """Let them drain, side by side."""
    for daemon in daemons:
        print(f"stopping {daemon.name}", flush=True)
        daemon.ask_to_stop()
    for daemon in daemons:
        daemon.wait_stopped(DRAIN_S)


def running_workers() -> list[Daemon]:
    """The stack's workers that run, by number."""
    names = sorted(
        (file.stem for file in (FOLDER / "run").glob("worker-*.pid")),
        key=lambda name: int(name.partition("-")[2]),
    )
    return [daemon for name in names if (daemon := Daemon(name, FOLDER)).pid() is not None]


def enroll_workers(stack: Stack) -> None:
    """Make the account that all workers use. Raises SplitEasyError."""
    environment = {**stack.environment, "SPLITEASY_MANAGEMENT": stack.access.management}
    command = ("device", "enroll", "workers", "--worker", "--out", str(WORKERS))
    spliteasy("the workers have no account", *command, environment=environment)


def spliteasy(problem: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command of ours. Raises SplitEasyError, which begins with the problem."""
    ran = subprocess.run(
        [sys.executable, "-m", "spliteasy_cli", *arguments],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SplitEasyError(f"{problem}: {ran.stderr.strip()}")
