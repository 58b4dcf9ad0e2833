"""The parts that every command shares: errors as one line, exit codes, options in any place, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

import spliteasy_cli as cli
from spliteasy.errors import JobError, LinkError, RemoteError, StateUnwritable, UserError
from spliteasy_cli import hoist
from spliteasy_cli.app import app
from spliteasy_cli.support.runner import run
from tests.cli.conftest import Ran

COMMANDS = (
    *((str(command.name),) for command in app.registered_commands if not command.hidden),
    *(
        (str(group.name), str(command.name or getattr(command.callback, "__name__", "")))
        for group in app.registered_groups
        for command in (group.typer_instance.registered_commands if group.typer_instance else ())
    ),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: tuple[str, ...], spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy(*command, "--help")
    assert ran.code == 0
    assert f"Usage: spliteasy {' '.join(command)}" in ran.out


def test_help_lists_every_command(spliteasy: Callable[..., Ran]) -> None:
    out = spliteasy("--help").out
    assert {("train",), ("agent",), ("session", "pause"), ("device", "enroll")} <= set(COMMANDS)
    assert all(command[0] in out for command in COMMANDS)


def test_an_unknown_log_level_is_refused(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("status", "--log-level", "loud")
    assert ran.code == 2
    assert "'loud' is not one of debug, info, warning, error" in ran.err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["agent", "--debug", "--job", "x"], ["--debug", "agent", "--job", "x"]),
        (["agent", "--log-level", "info", "a"], ["--log-level", "info", "agent", "a"]),
        (["agent", "--log-level=info"], ["--log-level=info", "agent"]),
        (["agent", "--", "--debug"], ["agent", "--", "--debug"]),
        (["agent", "--log-level"], ["--log-level", "agent"]),
    ],
)
def test_global_options_work_behind_the_command(given: list[str], meant: list[str]) -> None:
    assert hoist(given) == meant


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("spliteasy_cli.app.app", broken)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (JobError("wrong", hint="do it so"), 2, "error: wrong (do it so)\n"),
        (LinkError("gone"), 1, "error: gone\n"),
        (OSError(28, "No space left on device", "/x/y"), 1, "error: /x/y: No space left on device\n"),
        (OSError(2, "No such file or directory", "/x"), 2, "error: /x: No such file or directory\n"),
        (StateUnwritable("disk full"), 1, "error: disk full\n"),
        (RemoteError("no such job", code="unknown-job"), 1, "error: no such job\n"),
        (RemoteError("NaN", code="not-finite"), 2, "error: NaN\n"),
        (UserError("amqp://u:hunter2@h/ is\nwrong"), 2, "error: amqp://u:***@h/ is wrong\n"),
        (
            ExceptionGroup(
                "", [LinkError("gone"), ExceptionGroup("", [UserError("typo"), LinkError("gone")])]
            ),
            1,
            "error: gone\nerror: typo\n",
        ),
    ],
)
def test_an_expected_error_is_a_line(
    error: Exception,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fails_with(error, monkeypatch)
    assert cli.main(["status"]) == code
    assert capsys.readouterr().err == line


def test_debug_shows_the_traceback_without_passwords(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(UserError("amqp://u:hunter2@h/"), monkeypatch)
    assert cli.main(["status", "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "hunter2" not in err


def test_a_bug_shows_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(KeyError("surprise"), monkeypatch)
    assert cli.main(["status"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "a bug of ours" in err


def test_the_first_signal_asks_to_stop() -> None:
    async def main(stop: asyncio.Event) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        await stop.wait()
        return "finished its step"

    assert run(main) == "finished its step"


def test_sigterm_asks_to_stop_too() -> None:
    async def main(stop: asyncio.Event) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        return "finished its step"

    assert run(main) == "finished its step"


def test_the_second_signal_stops_at_once() -> None:
    left: list[str] = []

    async def main(stop: asyncio.Event) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await stop.wait()
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            left.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        run(main)
    assert left == ["cleaned up"]


def test_what_the_command_raises_comes_out() -> None:
    async def main(_stop: asyncio.Event) -> None:
        raise UserError("typo")

    with pytest.raises(UserError, match="typo"):
        run(main)
