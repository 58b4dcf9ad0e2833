"""A worker that answers with gradients of its own making: the agent notices, and says so or stops."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker
from device_agent.config import AgentConfig
from device_agent.training.data import DeviceData
from device_agent.training.hijack_watch import may_watch
from spliteasy.codecs.packer import PLAIN
from spliteasy.errors import Hijacked
from spliteasy.job import Job, parse_job
from spliteasy.privacy.hijack import WINDOW
from spliteasy_cli.leakage.wire_tap import TappedBroker
from testing import serving
from tests.drawn import SECRET

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20
SAID = "the gradients that came back in the last"


def model() -> nn.Module:
    head = nn.Sequential(nn.Linear(12, 10), nn.Tanh())
    body = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 8))
    return nn.Sequential(OrderedDict(head=head, body=body, tail=nn.Linear(8, 3)))


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 12), torch.zeros(6, dtype=torch.int64)


def numbers() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 12), torch.zeros(6, 3)


def job(micro_batches: int = 1, loss: str = "cross_entropy") -> Job:
    spec = {
        "name": "watched",
        "batch_size": 12,
        "epochs": 5,
        "micro_batches": micro_batches,
        "model": {
            "factory": f"{__name__}:model",
            "example": f"{__name__}:{'example' if loss == 'cross_entropy' else 'numbers'}",
            "cuts": ["head", "body"],
        },
        "loss": {"name": loss},
        "optimizer": {"name": "sgd", "lr": 0.05},
    }
    return Job.create(parse_job(spec), ROOT)


def data() -> DeviceData:
    generator = torch.Generator().manual_seed(2)
    return DeviceData(TensorDataset(torch.randn(48, 12, generator=generator), torch.arange(48) % 3), None)


class Puller:
    """Pulls activations towards a place of its own, whatever the device's loss says."""

    def __init__(self) -> None:
        self._sent: dict[tuple[int, int], m.Forward] = {}
        self._asked: dict[str, tuple[int, int]] = {}

    def saw(self, message: m.AnyMessage) -> None:
        if isinstance(message, m.Forward):
            self._sent[message.step, message.micro] = message
        elif isinstance(message, m.Backward):
            self._asked[message.request] = message.step, message.micro

    def change(self, gradient: m.Gradient) -> m.Gradient:
        (activations,) = self._sent[self._asked[gradient.answers]].values
        assert isinstance(activations, Tensor)
        target = torch.linspace(-1, 1, activations.shape[1])
        return gradient.model_copy(
            update={"values": (0.1 * (activations - target),), "codec": PLAIN, "packing": ()}
        )


async def train(made: Job, state: Path, broker: MemoryBroker, *, stop: bool = False) -> int:
    """The steps of an agent whose worker's answers pass through that broker."""
    config = AgentConfig(
        job=made.name, device="phone-1", data=data(), secret=SECRET, state=state, stop_if_hijacked=stop
    )
    async with serving(made, broker=broker) as cluster:
        return (await cluster.train(config))[0].step


@pytest.mark.parametrize("micro_batches", [1, 3])
async def test_the_agent_says_once_that_its_head_is_hijacked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], micro_batches: int
) -> None:
    assert await train(job(micro_batches), tmp_path, TappedBroker(Puller())) == STEPS
    assert capsys.readouterr().out.count(SAID) == 1


async def test_the_agent_stops_before_the_step_that_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(Hijacked, match=rf"step {WINDOW}: {SAID} {WINDOW} steps .*ask who runs the worker"):
        await train(job(), tmp_path, TappedBroker(Puller()), stop=True)


@pytest.mark.parametrize("micro_batches", [1, 3])
async def test_an_honest_worker_is_not_suspected(tmp_path: Path, micro_batches: int) -> None:
    assert await train(job(micro_batches), tmp_path, TappedBroker(), stop=True) == STEPS


def test_only_what_has_classes_and_a_tail_is_watched() -> None:
    assert may_watch(job())
    assert not may_watch(job(loss="mse"))
