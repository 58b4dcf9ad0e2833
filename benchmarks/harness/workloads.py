"""The models of the benchmarks: three, each as a whole, in three parts, and as a job.

W0 is bound by latency (the digits example), W1 by computation, W2 by the wire. Data is small, fixed and
made up (but W0's): steps are measured, not accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from examples.digits.data import device_data as digits
from examples.digits.model import DigitNet

SEED = 5
SAMPLES = 256
STEPS = 100_000
"""More than any benchmark takes: it ends the training when it has seen enough."""

Parts = tuple[nn.Module, nn.Module, nn.Module]
Items = Dataset[tuple[Tensor, Tensor]]


class Cifar18(nn.Module):
    """W1: ResNet-18 for 3x32x32; the stem is the head, pool and classifier are the tail."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 64)
        widths = (64, 64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for before, width in pairwise(widths):
            blocks += [_Block(before, width, stride=1 if before == width else 2), _Block(width, width)]
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(512, 100)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 3, 32, 32] to float32 [batch, 100] logits."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(image))))
        return logits


class Wide(nn.Module):
    """W2: large activations, little computation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(_separable(64, 128), _separable(128, 256))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 3, 64, 64] to float32 [batch, 10] logits."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(image))))
        return logits


class FrozenStem(Wide):
    """`Wide` with a stem that nothing trains, as one that was trained before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem.requires_grad_(False)


class Deep(nn.Module):
    """A model for many devices: nearly all work is the worker's, and the cuts are narrow (31 kB each)."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.stem = _convolution(1, 4)
        self.blocks = nn.Sequential(_convolution(4, 64), *(_convolution(64, 64) for _ in range(layers)))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.classifier = nn.Linear(256, 10)

    def forward(self, image: Tensor) -> Tensor:
        """float32 [batch, 1, 8, 8] to float32 [batch, 10] logits."""
        logits: Tensor = self.classifier(self.pool(self.blocks(self.stem(image))))
        return logits


class _Block(nn.Module):
    """A basic residual block."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _convolution(channels_in, channels, stride)
        self.second = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def _convolution(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


def _separable(channels_in: int, channels: int) -> nn.Sequential:
    """Return a depthwise-separable convolution of stride 2."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, 2, padding=1, groups=channels_in, bias=False),
        nn.BatchNorm2d(channels_in),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A setting of our system: codecs, micro-batches, the activation cache."""

    activations: str = "fp32"
    gradients: str = "fp32"
    micro_batches: int = 1
    cache: bool = True
    """Workers keep the activations of a frozen head."""


PLAIN_SETTING = Setting()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model with its data. `image` is a sample's shape; `body_last` where the body ends."""

    name: str
    make: Callable[[], nn.Module]
    image: tuple[int, ...]
    classes: int
    batch: int
    body_last: str = "pool"
    data: Callable[[str], Items | tuple[Items, Items]]
    lr: float = 0.01

    def model(self) -> nn.Module:
        """The same weights in every process."""
        torch.manual_seed(SEED)
        return self.make()

    def parts(self, model: nn.Module) -> Parts:
        """Return head, body and tail: they share the model's weights."""
        names = ["stem", "blocks", "pool", "classifier"]
        last = names.index(self.body_last) + 1
        modules = [model.get_submodule(name) for name in names]
        return modules[0], nn.Sequential(*modules[1:last]), nn.Sequential(*modules[last:])

    def optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, foreach=False)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without end, put together as a data loader would."""
        found = self.data("phone-1")
        items = found[0] if isinstance(found, tuple) else found
        count = len(items)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(SEED)
        while True:
            order = torch.randperm(count, generator=generator).tolist()
            for start in range(0, count - self.batch + 1, self.batch):
                rows = [items[index] for index in order[start : start + self.batch]]
                images, labels = zip(*rows, strict=True)
                yield torch.stack(images), torch.stack(labels)

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of what crosses the first and the second cut."""
        head, body, _ = self.parts(self.model())
        with torch.no_grad():
            a = head(torch.zeros(self.batch, *self.image))
            return tuple(a.shape), tuple(body(a).shape)

    def job(self, name: str, setting: Setting = PLAIN_SETTING) -> dict[str, Any]:
        """Return the job file's content."""
        module = __name__
        return {
            "name": name,
            "seed": SEED,
            "batch_size": self.batch,
            "drop_last": True,
            "epochs": STEPS,
            "model": {
                "factory": f"{module}:make_{self.name.lower()}",
                "example": f"{module}:example_{self.name.lower()}",
                "cuts": ["stem", self.body_last],
                "inputs": ["image"],
                "targets": ["label"],
            },
            "loss": {"name": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": self.lr, "momentum": 0.9},
            "evaluation": {"every_epochs": 0},
            "micro_batches": setting.micro_batches,
            "link": {
                "activations": setting.activations,
                "gradients": setting.gradients,
                "cache": setting.cache,
            },
        }


def _made_up(image: tuple[int, ...], classes: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(SAMPLES, *image, generator=generator)
    return TensorDataset(images, torch.randint(classes, (SAMPLES,), generator=generator))


def data_w0(device: str) -> Items:
    return digits("phone-1")[0]


def data_w1(device: str) -> TensorDataset:
    return _made_up(W1.image, W1.classes)


def data_w2(device: str) -> TensorDataset:
    return _made_up(W2.image, W2.classes)


def data_frozen(device: str) -> TensorDataset:
    return _made_up((3, 32, 32), 10)


def data_pooled(device: str) -> TensorDataset:
    return data_frozen(device)


W0 = Workload(name="W0", make=DigitNet, image=(1, 8, 8), classes=10, batch=30, data=data_w0, lr=0.1)
W1 = Workload(
    name="W1", make=Cifar18, image=(3, 32, 32), classes=100, batch=32, body_last="blocks", data=data_w1
)
W2 = Workload(name="W2", make=Wide, image=(3, 64, 64), classes=10, batch=32, body_last="blocks", data=data_w2)
FROZEN = Workload(
    name="frozen",
    make=FrozenStem,
    image=(3, 32, 32),
    classes=10,
    batch=32,
    body_last="blocks",
    data=data_frozen,
)
"""A device with a frozen head: what it sends forward is the same in each epoch."""
FROZEN_POOLED = replace(FROZEN, name="pooled", body_last="pool", data=data_frozen)
"""The same with a second cut behind the pool, where little crosses."""
WORKLOADS = {each.name: each for each in (W0, W1, W2)}
CROWD = Workload(name="crowd", make=Deep, image=(1, 8, 8), classes=10, batch=30, data=data_w0)
"""The workload of many devices that train on one worker."""
HEAVY = Workload(name="heavy", make=partial(Deep, 20), image=(1, 8, 8), classes=10, batch=120, data=data_w0)
"""The same with a body beside which all else is small: for workers beside each other."""


def _example(workload: Workload) -> tuple[Tensor, Tensor]:
    return torch.zeros(4, *workload.image), torch.zeros(4, dtype=torch.int64)


# The jobs' factories, by the names that `Workload.job` gives.
make_w0, make_w1, make_w2, make_crowd, make_heavy = (each.make for each in (W0, W1, W2, CROWD, HEAVY))
make_frozen = make_pooled = FrozenStem


def example_w0() -> tuple[Tensor, Tensor]:
    return _example(W0)


def example_w1() -> tuple[Tensor, Tensor]:
    return _example(W1)


def example_w2() -> tuple[Tensor, Tensor]:
    return _example(W2)


def example_frozen() -> tuple[Tensor, Tensor]:
    return _example(FROZEN)


def example_pooled() -> tuple[Tensor, Tensor]:
    return _example(FROZEN_POOLED)


def example_crowd() -> tuple[Tensor, Tensor]:
    return _example(CROWD)


def example_heavy() -> tuple[Tensor, Tensor]:
    return _example(HEAVY)
