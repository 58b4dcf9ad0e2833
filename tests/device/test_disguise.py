"""An agent looks at its own data first, and trains no job that would send them in disguise."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from device_agent.config import AgentConfig
from device_agent.job_source import load_job
from device_agent.training import disguise
from device_agent.training.data import DeviceData
from device_agent.training.trainer import DeviceTrainer
from spliteasy.errors import JobError, PortableError
from spliteasy.graph.segment import Segment
from spliteasy.job import Job, device_parts, parse_job
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


def found_by(inputs: Tensor, head: Segment, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how often the head was measured on these inputs."""
    measured: list[Tensor] = []
    right = disguise.find_disguises

    def measuring(segment: Segment, given: Sequence[Tensor], **how: Any) -> Any:
        measured.extend(given)
        return right(segment, given, **how)

    monkeypatch.setattr(disguise, "find_disguises", measuring)
    with suppress(JobError):
        disguise.refuse_disguised(job("above"), head, [inputs])
    monkeypatch.setattr(disguise, "find_disguises", right)
    return len(measured)


def test_devices_of_one_process_are_measured_once_by_all_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    disguise._KEPT.clear()
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, 12, generator=generator)
    x[0, 0], x[0, 1] = 0.0, 1.0
    weights = {name: torch.ones(value.shape) for name, value in job("above").head.tensors().items()}
    head = job("above").head.spawn(weights)
    assert found_by(x, head, monkeypatch) == 2, "in training and in evaluation"
    alike = torch.rand(6, 12, generator=generator)
    alike[0, 0], alike[0, 1] = 0.0, 1.0
    assert found_by(alike, job("above").head.spawn(weights), monkeypatch) == 0, "the same ranges and weights"
    assert found_by(20 * x, head, monkeypatch) >= 1, "another range: the device's own data tell"
    others = {name: 2 * value for name, value in weights.items()}
    assert found_by(x, job("above").head.spawn(others), monkeypatch) == 2, "other weights"


def test_what_is_refused_is_refused_again() -> None:
    """A second device with the same head and ranges is told as the first was."""
    weights = {name: torch.ones(value.shape) for name, value in job("above").head.tensors().items()}
    x = 20 * torch.rand(6, 12, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        with pytest.raises(JobError, match="would send"):
            disguise.refuse_disguised(job("above"), job("above").head.spawn(weights), [x])


def test_devices_of_one_process_share_a_job_of_the_same_bytes() -> None:
    made, parts = job("above"), device_parts(job("above").parts)
    own = {name: made.parts[name] for name in parts}
    first = load_job(made.manifest, own)
    assert load_job(made.manifest, dict(own)) is first
    changed = {**own, "spec.json": own["spec.json"].replace(b"above", b"ABOVE")}
    with pytest.raises(PortableError):
        load_job(made.manifest, changed)
