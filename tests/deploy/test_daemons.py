"""Background processes by pid file: found again, stopped, and never mistaken for another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.stack.daemons import Daemon, start_time

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(600)",
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("sleeper", tmp_path)
    yield daemon
    daemon.ask_to_stop()
    daemon.wait_stopped(0.2)


def wait_until_up(daemon: Daemon) -> None:
    while "up" not in daemon.last_words():
        os.sched_yield()


def test_start_is_idempotent_and_stop_is_complete(daemon: Daemon) -> None:
    assert daemon.pid() is None
    daemon.start(SLEEP, {})
    pid = daemon.pid()
    assert pid is not None
    daemon.start(SLEEP, {})
    assert daemon.pid() == pid
    assert Daemon("sleeper", daemon.folder).pid() == pid
    daemon.ask_to_stop()
    daemon.wait_stopped(30)
    assert daemon.pid() is None
    assert start_time(pid) is None
    assert not daemon.pid_file.exists()


def test_one_that_does_not_listen_is_forced(daemon: Daemon) -> None:
    daemon.start(STUBBORN, {})
    wait_until_up(daemon)
    daemon.ask_to_stop()
    daemon.wait_stopped(0.2)
    assert daemon.pid() is None


def test_a_pid_that_is_somebody_else_now_is_left_alone(daemon: Daemon) -> None:
    with subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL) as other:
        try:
            daemon.pid_file.parent.mkdir(parents=True)
            daemon.pid_file.write_text(f"{other.pid} 12345")
            assert daemon.pid() is None
            daemon.ask_to_stop()
            daemon.wait_stopped(5)
            assert other.poll() is None
        finally:
            other.kill()


def test_it_runs_in_the_folder_that_was_named(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start([sys.executable, "-c", "open('left', 'w')"], {}, cwd=tmp_path / "run")
    daemon.wait_stopped(30)
    assert (tmp_path / "run/left").exists()


def test_the_log_has_output_and_errors(daemon: Daemon) -> None:
    program = "import os, sys; print(os.environ['WORD'], flush=True); sys.exit('and it failed')"
    daemon.start([sys.executable, "-c", program], {"WORD": "hello"})
    daemon.wait_stopped(30)
    assert daemon.last_words() == "hello\nand it failed"
