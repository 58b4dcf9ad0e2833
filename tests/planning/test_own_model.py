"""The how-to works: its files are written as they stand there, its commands run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from spliteasy_cli import main

DOCUMENT = Path(__file__).parents[2] / "docs/own-model.md"
_FILE = re.compile(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_how_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DOCUMENT.read_text()
    files = dict(_FILE.findall(text))
    assert set(files) == {"heart.py", "job.toml"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    commands = [shlex.split(line) for block in _SHELL.findall(text) for line in block.splitlines()]
    assert [command[1] for command in commands] == ["plan", "profile", "plan", "train", "parity"]
    out = ""
    for command in commands:
        assert main(command[1:]) == 0, command
        out += capsys.readouterr().out
    assert 'cuts = ["' in out
    assert (tmp_path / "plan.png").exists()
    assert (tmp_path / "runs/heart/report.json").exists()
    assert out.strip().endswith("max_abs_diff=0")
