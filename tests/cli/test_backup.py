"""The procedure of docs/operations.md: save broker and store, lose them, bring them back, train on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import finish, read_until, started
from tests.cli.test_stack import AGENT, DIGITS, Place, free_port

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis]


def test_training_goes_on_from_a_backup(tmp_path: Path) -> None:
    place = Place(tmp_path, free_port(), free_port())
    agent = (*AGENT, "--device", "phone-1", "--state", "state-1")
    try:
        assert place.local("up", "--workers", 1).returncode == 0
        assert place.spliteasy("submit", DIGITS).returncode == 0
        with started(agent, tmp_path, SPLITEASY_BROKER=place.stack["broker"]) as running:
            read_until(running, '"step":60')
            running.send_signal(signal.SIGTERM)
            finish(running)
        stopped_at = place.step("digits.phone-1")
        assert place.local("down").returncode == 0
        shutil.copytree(tmp_path / ".local", tmp_path / "backup")
        shutil.rmtree(tmp_path / ".local")

        shutil.copytree(tmp_path / "backup", tmp_path / ".local")
        assert place.local("up", "--workers", 1).returncode == 0
        assert place.step("digits.phone-1") == stopped_at
        with started(agent, tmp_path, SPLITEASY_BROKER=place.stack["broker"]) as running:
            out = finish(running)
        assert f"resumed after step {stopped_at}" in out
        assert "done, 360 steps" in out
    finally:
        place.local("clean")
