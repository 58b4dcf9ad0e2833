"""The examples of the README work as they are written there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from spliteasy_cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(folder: Path, *arguments: str) -> str:
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_split_in_ten_lines(tmp_path: Path) -> None:
    (tmp_path / "ten.py").write_text(blocks("python")[0] + "\nprint(tuple(logits.shape))\n")
    assert run(tmp_path, "ten.py") == "(8, 10)\n"


def test_ones_own_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(blocks("python")[1])
    (tmp_path / "job.toml").write_text(blocks("toml")[0])
    lines = re.findall(
        r"^    spliteasy ((?:plan|train|parity|merge) .*(?:runs/mine|job\.toml).*)$", README, re.MULTILINE
    )
    commands = [line.partition("#")[0].split() for line in lines]
    assert [command[0] for command in commands] == ["plan", "train", "parity", "merge"]
    outputs = [run(tmp_path, "-m", "spliteasy_cli", *command) for command in commands]
    assert "encoder" in outputs[0]
    assert "phone-2" in outputs[1]
    assert outputs[2].splitlines()[-1] == "max_abs_diff=0"
    assert (tmp_path / "model.safetensors").exists()


def test_every_command_that_is_named_exists() -> None:
    known = {str(command.name) for command in app.registered_commands if not command.hidden}
    known |= {str(group.name) for group in app.registered_groups}
    named = set(re.findall(r"^    (?:\.venv/bin/)?spliteasy ([a-z]+)", README, re.MULTILINE))
    named |= set(re.findall(r"`spliteasy ([a-z]+)", README))
    assert named
    assert named <= known
