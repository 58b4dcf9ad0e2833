"""The command tree: earlier spellings, options from a file, defaults, and what `--help` loads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.transport.topology import DEAD_BYTES
from server_worker.config import WorkerConfig
from spliteasy.runtime import worker_defaults as defaults
from spliteasy_cli.app import MOVED
from spliteasy_cli.command_reference import reference
from spliteasy_cli.commands import worker
from tests.cli.conftest import Ran

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "structlog", "asyncio", "aiormq", "orjson", "ssl", "rich")
"""Packages that no module of the command tree may load before a command runs."""


@pytest.mark.parametrize("old", MOVED)
def test_an_earlier_spelling_answers_with_the_new_one(old: str, spliteasy: Callable[..., Ran]) -> None:
    for arguments in (("mine.phone-1", "--yes"), ("--help",), ("-o", "two words")):
        ran = spliteasy(old, *arguments)
        assert ran.code == 2
        assert f"`spliteasy {old}` is `spliteasy {MOVED[old]}` now" in ran.error
    assert f"(spliteasy {MOVED[old]} -o 'two words')" in spliteasy(old, "-o", "two words").error
    assert spliteasy(*MOVED[old].split(), "--help").code == 0


def test_the_old_heartbeat_answers_with_the_new_option(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("worker", "--heartbeat-s", "3")
    assert ran.code == 2
    assert "--takeover-s" in ran.error


def test_help_loads_no_package_that_takes_long() -> None:
    program = "import sys\nfrom spliteasy_cli import main\nmain(['worker', '--help'])\n"
    program += "print('LOADED', *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.partition("LOADED")[2].split()}
    assert "spliteasy_cli" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_lists_commands_by_section_with_their_whole_summary(spliteasy: Callable[..., Ran]) -> None:
    out = spliteasy("--help").out
    assert out.index("\nTrain:\n") < out.index("\nOn a broker and a store:\n")
    assert "..." not in out.partition("Train:")[2]
    assert "..." not in spliteasy("session", "--help").out.partition("Commands:")[2]


def test_the_reference_is_as_the_parser_says() -> None:
    assert (ROOT / "docs/commands.md").read_text() == reference(), "run `make docs`"


@pytest.fixture
def started_with(
    monkeypatch: pytest.MonkeyPatch, spliteasy: Callable[..., Ran]
) -> Callable[..., worker.Limits | Ran]:
    """Returns the limits that a worker would start with, or what the command said."""
    seen: list[worker.Limits] = []

    def keep(name: str | None, trust: str, limits: worker.Limits, give_up_s: float | None) -> WorkerConfig:
        seen.append(limits)
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "worker_config", keep)
    where = ("--broker", "amqp://localhost:1", "--store", "sqlite:///none.sqlite")

    def start(*arguments: str) -> worker.Limits | Ran:
        seen.clear()
        ran = spliteasy("worker", *where, *arguments)
        return seen[0] if seen else ran

    return start


def test_a_worker_takes_options_from_a_file_but_the_command_line_wins(
    started_with: Callable[..., worker.Limits | Ran], tmp_path: Path
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('memory-mib = 100\n"--jobs" = 7\ndrain_s = 2.5\n')
    limits = started_with("--config", str(file), "--jobs", "9")
    assert isinstance(limits, worker.Limits)
    assert (limits.memory_mib, limits.jobs, limits.drain_s) == (100, 9, 2.5)
    assert limits.waiting_mib == defaults.WAITING_MIB


def test_a_processor_that_is_not_there_is_told(
    started_with: Callable[..., worker.Limits | Ran], tmp_path: Path
) -> None:
    assert isinstance(started_with("--device", "cpu"), worker.Limits)
    file = tmp_path / "worker.toml"
    file.write_text('device = "cuda:7"\n')
    for arguments in (("--device", "cuda:7"), ("--config", str(file))):
        ran = started_with(*arguments)
        assert isinstance(ran, Ran)
        assert ran.code == 2
        assert "there is no processor cuda:7 here: torch" in ran.error
        assert "finds cpu" in ran.error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("memory = 1", "there is no option memory"),
        ("memory_mib = true", "neither a text nor a number"),
        ("memory_mib = 1\nmemory-mib = 2", "named twice"),
        ("memory_mib", "no TOML"),
        ('config = "other.toml"', "there is no option config"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    started_with: Callable[..., worker.Limits | Ran], tmp_path: Path, text: str, says: str
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(text)
    ran = started_with("--config", str(file))
    assert isinstance(ran, Ran)
    assert ran.code == 2
    assert says in ran.error
    assert "worker.toml" in ran.error


@pytest.mark.parametrize("value", ["0", "2.5", '"many"'])
def test_a_value_of_the_file_is_held_against_the_option(
    started_with: Callable[..., worker.Limits | Ran], tmp_path: Path, value: str
) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(f"memory_mib = {value}")
    ran = started_with("--config", str(file))
    assert isinstance(ran, Ran)
    assert ran.code == 2
    assert "--memory-mib" in ran.err


def test_a_file_that_is_not_there_is_named(started_with: Callable[..., worker.Limits | Ran]) -> None:
    ran = started_with("--config", "none.toml")
    assert isinstance(ran, Ran)
    assert "none.toml can't be read: no such file" in ran.error


def test_a_worker_without_options_has_the_settings_of_the_library() -> None:
    limits = worker.Limits(
        memory_mib=defaults.MEMORY_MIB,
        waiting_mib=defaults.WAITING_MIB,
        rows_mib=defaults.ROWS_MIB,
        dead_mib=defaults.DEAD_MIB,
        jobs=defaults.JOBS,
        request_tflop=defaults.REQUEST_TFLOP,
        drain_s=defaults.DRAIN_S,
        device_messages=defaults.DEVICE_MESSAGES_PER_S,
        device_mib=defaults.DEVICE_MIB_PER_S,
        device_sessions=defaults.DEVICE_SESSIONS,
    )
    assert worker.worker_config("w", "enrolled", limits, None) == WorkerConfig(name="w")
    assert WorkerConfig().dead_bytes == DEAD_BYTES
