"""Models that each do one thing that makes cutting hard. Inputs (B, 6) but for what a class says."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint


class TwoInputs(nn.Module):
    """An image branch (B, 3, 8, 8) and a table branch (B, 5), joined late."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6))
        self.table = nn.Linear(5, 6)
        self.mid = nn.Linear(12, 12)
        self.late = nn.Linear(12, 8)
        self.out = nn.Linear(13, 3)

    def forward(self, picture: Tensor, row: Tensor) -> Tensor:
        x = torch.cat((self.image(picture), self.table(row)), 1)
        x = torch.relu(self.late(torch.relu(self.mid(x))))
        return self.out(torch.cat((x, row), 1))


class SeveralOutputs(nn.Module):
    """Outputs from the beginning, the middle and the end, in a nested structure."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        a = torch.relu(self.a(x))
        b = torch.tanh(self.b(a))
        return {"early": a, "rest": (b, self.c(b)), "sizes": None}


class WrittenInPlace(nn.Module):
    """Activations written in place: whole, by `+=`, through views, after they were used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        y = self.b(x)
        kept = y * 2
        y += x
        y[:, 1:3] *= 0.5
        first = y[:, 0]
        first.mul_(3.0).add_(1.0)
        pairs = self.c(y).view(-1, 2, 3)
        pairs.select(1, 0).mul_(0.5)
        both = pairs.flatten(1)
        turned = both.t()
        turned[2].zero_()
        last = self.d(both)
        last.unsqueeze(2).squeeze(2).permute(1, 0)[3:].mul_(0.1)
        return self.act(last) + kept + torch.tanh(y)


class WrittenAcrossTheCut(nn.Module):
    """A value used before and after a cut, and written in place between: `x` means two things."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x * 2)
        view = x.view(-1, 3, 2)
        x.add_(y.detach().mean())
        z = self.c(torch.tanh(x))
        view[:, 0] += 1.0
        return self.d(z) + x.sum(1, keepdim=True) + view.flatten(1)


class Buffers(nn.Module):
    """Buffers written, assigned, hidden and shared read-only; a counter; a region without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("average", torch.zeros(6))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * self.scale
        if self.training:
            with torch.no_grad():
                self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
            self.steps = self.steps + 1
        x = self.norm(self.b(x - self.average))
        return self.c(torch.relu(x) * self.scale)


class CalledAgain(nn.Module):
    """One activation and one layer called several times."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.again, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.a(x))
        x = self.relu(self.again(x))
        x = self.relu(self.again(x))
        return self.b(x)


class Frozen(nn.Module):
    """A frozen first layer and a frozen batch norm in the middle; a parameter that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)
        self.unused = nn.Parameter(torch.ones(2))
        self.a.requires_grad_(False)
        self.norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.norm(self.b(torch.relu(self.a(x))))))


class NeedsBatchSize(nn.Module):
    """The body makes the batch size from nothing it is given: an integer crosses. Tokens cross as int64."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.codes = nn.Embedding(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        codes = (self.a(x).detach() * 2).long().clamp(0, 7)
        total = self.a(x).sum((0, 1))
        y = self.b(total.expand(batch, 6) + self.codes(codes).mean(1))
        return self.c(y.reshape(batch * 2, 3).reshape(batch, -1))


class OnlyANumber(nn.Module):
    """Nothing with a batch dimension crosses, and the body needs the batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.mean = BatchMean()

    def forward(self, x: Tensor) -> Tensor:
        total = self.mean(self.a(x))
        y = self.b(total.expand(x.shape[0], 6))
        return self.c(torch.tanh(y))


class EarlyWeights(nn.Module):
    """A model that computes first what depends on weights alone, and uses it late: by the body, by the tail,
    by both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.tanh = nn.Tanh()
        self.own, self.late, self.both = (nn.Parameter(torch.randn(1, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        own, late, both = torch.tanh(self.own)[:, :6], self.late[:, 1:7] * 2, self.both[:, 2:].exp()
        x = self.tanh(self.b(self.a(x) + own) * both)
        return self.c(x * late + both)


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


class ManyTerms(nn.Module):
    """One value used twice in the body and twice in the tail: its gradient has four terms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.tanh = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tanh(self.a(x))
        y = torch.sin(x) + self.b(x)
        return self.d(self.c(y) * x) + torch.exp(x)


class Transposed(nn.Module):
    """Activations of permuted layout over the cut, and a channels-last weight. Input (B, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.turn = Turn()
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.turn(self.a(x)))
        return self.c(F.relu(x).sum((1, 2)))


class Turn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 2, 1)


class Noisy(nn.Module):
    """Dropout of several kinds and noise: random in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.3, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.a(x))
        if self.training:
            x = x * x.new_empty((x.shape[0], 1)).bernoulli_(0.8)
        return self.c(F.dropout(self.b(x), 0.2, self.training))


def doubled(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output * 2


class EasilyLost(nn.Module):
    """Gradients that are easy to lose, written so that a trace keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.teacher = (nn.Linear(6, 6) for _ in range(4))
        self.again = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 6), nn.Tanh(), nn.Dropout(0.2))
        self.b.register_forward_hook(doubled)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        with torch.no_grad():
            wise = self.teacher(x)
        with torch.inference_mode():
            wiser = self.teacher(x)
        x = x + (torch.sign(x) - x).detach()
        x = self.b(x * 0.1 + (x * 0.9).detach()) + wise + wiser.clone()
        return self.c(checkpoint(self.again, x, use_reentrant=False))


class Mix(nn.Module):
    """Writes by `out=` into an activation, a part of one, and a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                torch.lerp(self.mean, x.mean(0), 0.1, out=self.mean)
        with torch.no_grad():
            scale = torch.empty_like(x)
            torch.abs(x, out=scale)
            torch.mul(scale[:, :3], 0.5, out=scale[:, :3])
        return self.layer(x - self.mean) * scale


ORTHOGONAL = ("matrix_exp", "cayley", "householder")


class PowerIterations(nn.Module):
    """Spectral norms, whose buffers move by `out=` in training, and other weights that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.b = nn.Sequential(
            parametrizations.spectral_norm(nn.Linear(6, 6), n_power_iterations=3),
            *(parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map=each) for each in ORTHOGONAL),
        )
        self.c = nn.utils.spectral_norm(nn.Linear(6, 6))
        self.mix = Mix()
        self.d = parametrizations.weight_norm(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.mix(self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))))
