"""An agent looks at its own data first, and trains no job that would send them in disguise."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from device_agent.config import AgentConfig
from device_agent.training.data import DeviceData
from device_agent.training.trainer import DeviceTrainer
from spliteasy.errors import JobError
from spliteasy.job import Job, parse_job
from testing import serving
from tests.drawn import SECRET

ROOT = Path(__file__).resolve().parents[2]


class Above(nn.Module):
    """What a layer makes of the input, and what of the input is above a level."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.mix(x), (x - 10).relu()), 1)


def above() -> nn.Module:
    """On inputs from 0 to 1 the head sends nothing but what its layer mixes."""
    parts = {"head": Above(), "body": nn.Linear(24, 8), "tail": nn.Linear(8, 3)}
    return nn.Sequential(OrderedDict(parts))


def weightless() -> nn.Module:
    parts = {"head": nn.Linear(12, 8), "body": nn.Linear(8, 3), "tail": nn.Softplus()}
    return nn.Sequential(OrderedDict(parts))


def example() -> tuple[Tensor, Tensor]:
    return torch.rand(6, 12), torch.zeros(6, dtype=torch.int64)


def job(factory: str, **more: object) -> Job:
    spec = {
        "name": "above",
        "batch_size": 6,
        "epochs": 1,
        "model": {
            "factory": f"{__name__}:{factory}",
            "example": f"{__name__}:example",
            "cuts": ["head", "body"],
            "inputs": ["x"],
        },
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.1},
        **more,
    }
    return Job.create(parse_job(spec), ROOT)


async def train(job: Job, state: Path, data: TensorDataset) -> int:
    """The steps of an agent that is served the job, and has that data."""
    config = AgentConfig(
        job=job.name, device="phone-1", data=DeviceData(data, None), secret=SECRET, state=state
    )
    async with serving(job) as cluster:
        return (await cluster.train(config))[0].step


def data(least: float) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(least + torch.rand(12, 12, generator=generator), torch.arange(12) % 3)


async def test_data_that_would_cross_in_disguise_stay(tmp_path: Path) -> None:
    """The example did not show it at submit: it had other values than this device."""
    made = job("above")
    assert await train(made, tmp_path / "other", data(0.0)) == 2
    with pytest.raises(JobError, match=r"100% of this device's input 'x' to the worker: in training, "):
        await train(made, tmp_path / "state", data(10.0))
    await train(job("above", share_inputs=["x"]), tmp_path / "shared", data(10.0))


async def test_nothing_was_sent_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr(DeviceTrainer, "run_head", lambda *a, **k: sent.append(a))
    with pytest.raises(JobError, match="cut later, or name 'x' in share_inputs"):
        await train(job("above"), tmp_path / "state", data(10.0))
    assert sent == []


async def test_an_agent_says_that_labels_can_be_read_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await train(job("weightless"), tmp_path / "state", data(0.0)) == 2
    assert "labels cross the second cut in disguise" in capsys.readouterr().out
