"""Models whose tensors are drawn in every way that initializers know, with what becomes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Case:
    """A factory; `public`: why a tensor can't be drawn, by name; `constant`: what is not random."""

    make: Callable[[], nn.Module]
    public: Mapping[str, str] = field(default_factory=dict)
    constant: tuple[str, ...] = ()


def of(make: Callable[[], Tensor]) -> nn.Module:
    """A module with one parameter, `0`."""
    return nn.ParameterList([nn.Parameter(make())])


def empty(*shape: int) -> Tensor:
    return torch.empty(shape)


class Tied(nn.Module):
    """An embedding whose weight is the output's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8, padding_idx=0)
        self.output = nn.Linear(8, 12, bias=False)
        self.output.weight = self.embedding.weight


class OutOfPlace(nn.Module):
    """Drawn into new memory each time, scaled, copied, joined and sliced."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 8) / 8**0.5 * torch.tensor(0.5))
        self.twin = nn.Parameter(self.weight.detach().clone())
        self.joined = nn.Parameter(torch.cat((torch.rand(4, 6) - 0.5, torch.zeros(2, 6))).t())
        self.row = nn.Parameter(torch.normal(0.0, 2.0, (40,)))
        self.levels = nn.Parameter(torch.randint(-3, 4, (6, 6)).float())


class Twice(nn.Module):
    """A factory that writes over what it drew first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        nn.init.normal_(self.linear.weight, 1.0, 0.5)
        nn.init.zeros_(self.linear.bias)


class Forgetful(nn.Module):
    """An LSTM whose forget gate is open, by writing into a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, num_layers=2)
        with torch.no_grad():
            self.lstm.bias_ih_l0[8:16].fill_(1.0)
            self.lstm.weight_hh_l0.mul_(0.5)


class Picky(nn.Module):
    """It looks at what it drew, and draws some of it again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.other = nn.Parameter(torch.randn(8, 8))
        while float(self.weight.detach().abs().max()) > 1.5:
            with torch.no_grad():
                self.weight[self.weight.abs() > 1.5] = 0.1 * torch.randn(1)


class Checked(nn.Module):
    """It looks at what it drew and leaves it as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        assert bool(self.weight.isfinite().all())


def loaded() -> nn.Module:
    linear = nn.Linear(3, 2)
    linear.load_state_dict({"weight": torch.tensor([[1.0, 2, 3], [4, 5, 6]]), "bias": torch.tensor([1.0, 2])})
    return linear


def from_numpy() -> Tensor:
    return torch.from_numpy(np.random.rand(5, 5).astype(np.float32))


def own_generator() -> Tensor:
    return torch.randn(20, 5, generator=torch.Generator().manual_seed(11))


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(16, 24)),
    "conv": Case(lambda: nn.Conv2d(3, 16, 3)),
    "transposed conv": Case(lambda: nn.ConvTranspose1d(4, 16, 3)),
    "channels last": Case(lambda: nn.Conv2d(3, 16, 3).to(memory_format=torch.channels_last)),
    "batch norm": Case(
        lambda: nn.BatchNorm1d(6),
        constant=("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    ),
    "lstm": Case(Forgetful),
    "gru": Case(lambda: nn.GRU(6, 8)),
    "attention": Case(lambda: nn.MultiheadAttention(16, 2), constant=("in_proj_bias", "out_proj.bias")),
    "embedding": Case(lambda: nn.Embedding(30, 8, padding_idx=0)),
    "tied": Case(Tied),
    "double and back": Case(lambda: nn.Linear(16, 16).double().float()),
    "truncated": Case(lambda: of(lambda: nn.init.trunc_normal_(empty(40, 30), std=0.02))),
    "truncated close": Case(lambda: of(lambda: nn.init.trunc_normal_(empty(40, 30), 0.5, 2.0, 0.0, 1.0))),
    "truncated far": Case(lambda: of(lambda: nn.init.trunc_normal_(empty(40, 30), a=1.5, b=4.0))),
    "kaiming": Case(lambda: of(lambda: nn.init.kaiming_normal_(empty(30, 40)))),
    "orthogonal": Case(lambda: of(lambda: nn.init.orthogonal_(empty(12, 20)))),
    "sparse": Case(lambda: of(lambda: nn.init.sparse_(empty(40, 8), 0.5))),
    "weight norm": Case(lambda: parametrizations.weight_norm(nn.Linear(16, 24))),
    "spectral norm": Case(lambda: parametrizations.spectral_norm(nn.Linear(16, 24))),
    "out of place": Case(OutOfPlace),
    "twice": Case(Twice, constant=("linear.bias",)),
    "own generator": Case(lambda: of(own_generator)),
    "checked": Case(Checked),
    "picky": Case(Picky, public={"weight": "looked-at"}),
    "loaded": Case(loaded, public={"weight": "loaded", "bias": "loaded"}),
    "numpy": Case(lambda: of(from_numpy), public={"0": "loaded"}),
    "poisson": Case(
        lambda: of(lambda: torch.poisson(torch.ones(9, 9))), public={"0": "operator aten.poisson.default"}
    ),
    "zeros": Case(lambda: of(lambda: torch.zeros(9, 9)), public={"0": "constant"}),
    "dirac": Case(lambda: of(lambda: nn.init.dirac_(empty(4, 4, 3))), public={"0": "constant"}),
    "tiny": Case(lambda: of(lambda: torch.randn(9, 9) * 1e-9), public={"0": "little-spread"}),
    "narrow": Case(
        lambda: of(lambda: torch.ones(9, 9) + torch.rand(9, 9) / 100), public={"0": "little-spread"}
    ),
    "one number": Case(
        lambda: of(lambda: torch.randn(1) * torch.ones(20, 20)), public={"0": "little-spread"}
    ),
    "one number and a pattern": Case(
        lambda: of(lambda: torch.randn(1) * torch.arange(400.0).sin().view(20, 20)),
        public={"0": "little-spread"},
    ),
}
