"""A small job of one's own for the command line's tests, and how to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from spliteasy_cli import main

ROOT = Path(__file__).resolve().parents[2]
_NUMBERS = count()

MODEL = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(12, 12), nn.Dropout(0.3)

    def forward(self, x):
        return self.drop(torch.tanh(self.linear(self.drop(x)))) + nn.functional.dropout(x, 0.1, self.training)


class Again(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Dropout(0.3), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 12))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.middle = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), {extra} nn.ReLU())
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.middle(self.stem(x)))


def build():
    return Net()


def example():
    return torch.zeros(4, 6), torch.zeros(4, dtype=torch.int64)


def squared(outputs, targets):
    return (outputs - nn.functional.one_hot(targets, 3)).pow(2).mean()


def device_data(device):
    generator = torch.Generator().manual_seed(len(device) + ord(device[-1]))
    x = torch.randn(48, 6, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.3).long()
    return TensorDataset(x[:40], y[:40]), TensorDataset(x[40:], y[40:])


def wide_data(device):
    return TensorDataset(torch.zeros(40, 7), torch.zeros(40, dtype=torch.int64))


def double_data(device):
    return TensorDataset(torch.zeros(40, 6, dtype=torch.float64), torch.zeros(40, dtype=torch.int64))


def changed_data(device):
    train, test = device_data(device)
    train.tensors[0][7, 3] += 1
    return train, test
"""

JOB = """
name = "{name}"
seed = 3
batch_size = 8
epochs = {epochs}
share_body = true
{top}

[model]
factory = "{module}:build"
example = "{module}:example"
cuts = {cuts}
inputs = ["x"]
targets = ["y"]

[loss]
{loss}

[optimizer]
{optimizer}

[evaluation]
every_epochs = 2

{more}
"""


@dataclass(frozen=True)
class Project:
    """A user's folder with a model, data and a job file."""

    folder: Path
    module: str

    @property
    def job_file(self) -> Path:
        return self.folder / "job.toml"


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[..., Project]:
    """Writes a project; each has a module name of its own, because a process imports a name once."""

    def write(
        *,
        epochs: int = 4,
        extra: str = "",
        cuts: str = '["stem", "middle"]',
        loss: str = 'name = "cross_entropy"',
        optimizer: str = 'name = "sgd"\nlr = 0.05\nmomentum = 0.9',
        top: str = "",
        more: str = "",
    ) -> Project:
        module = f"tiny_{next(_NUMBERS)}"
        folder = tmp_path / module
        folder.mkdir()
        (folder / f"{module}.py").write_text(MODEL.replace("{extra}", extra))
        job = JOB.format(
            name="tiny", epochs=epochs, module=module, cuts=cuts, loss=loss, optimizer=optimizer,
            top=top, more=more,
        )  # fmt: skip
        (folder / "job.toml").write_text(job)
        return Project(folder, module)

    return write


@dataclass(frozen=True)
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error of a command that failed as it should."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def spliteasy(capsys: pytest.CaptureFixture[str], _no_stack: None) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def _no_stack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No broker or store is named by the environment, and none runs in the current folder."""
    for variable in ("SPLITEASY_BROKER", "SPLITEASY_STORE", "SPLITEASY_THREADS", "SPLITEASY_VERDICTS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    path = list(sys.path)
    yield
    sys.path[:] = path


@contextmanager
def started(arguments: Sequence[object], folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A command as a process of its own in `folder`; killed at the end if it still runs."""
    command = [sys.executable, "-m", "spliteasy_cli", *map(str, arguments)]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the process to end well; what it said since it was last read."""
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read what the process says until a line has `text`; all that."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return "".join(seen)
    raise AssertionError(f"never said {text!r}:\n" + "".join(seen))
