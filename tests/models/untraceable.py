"""Models that do what no trace sees, or sees once. Inputs (B, 6), a layer `mid` that does it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

OWN_RANDOM = random.Random(3)
COUNT = itertools.count(1)


Change: TypeAlias = Callable[["Mid", Tensor], Tensor]
"""A change that a middle layer makes to its output."""


class Net(nn.Module):
    """`a`, then the middle, then `b`."""

    def __init__(self, mid: nn.Module) -> None:
        super().__init__()
        self.a, self.mid, self.b = nn.Linear(6, 6), mid, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.mid(self.a(x))))


class Mid(nn.Module):
    """A linear layer whose output goes through `change(layer, output)`."""

    all_calls = 0

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.linear, self.other, self.change = nn.Linear(6, 6), nn.Linear(6, 6), change
        self.calls, self.kept, self.log = 0, None, []  # type: ignore[var-annotated]
        self.counts, self.settings = {"calls": 0}, SimpleNamespace(calls=0)
        self.average = torch.zeros(6)
        self.own = np.random.default_rng(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self, self.linear(x))


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Clipped(torch.autograd.Function):
    """The gradient is another only where it is large; in the style that sets its context apart."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        return gradients[0].clamp(-1, 1)


clipped = Clipped.apply
"""The function as people write it: bound once, when the module is imported."""


def drops_by_random(layer: Mid, x: Tensor) -> Tensor:
    return x * 2 if layer.training and random.random() < 1e-6 else x


def drops_by_numpy(layer: Mid, x: Tensor) -> Tensor:
    return x * float(np.random.beta(1.0, 1.0))


def draws_by_random_in_evaluation(layer: Mid, x: Tensor) -> Tensor:
    return x if layer.training else x * random.random()


def draws_of_its_own(layer: Mid, x: Tensor) -> Tensor:
    return x * float(layer.own.normal())


def draws_from_the_module(layer: Mid, x: Tensor) -> Tensor:
    return x * OWN_RANDOM.random()


def counts_elsewhere(layer: Mid, x: Tensor) -> Tensor:
    """Count as a clock does: what the layer reads is no attribute of the model."""
    return x * next(COUNT)


def seeds_itself(layer: Mid, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return x * torch.rand(6)


def anneals(layer: Mid, x: Tensor) -> Tensor:
    layer.calls += 1
    return x / (0.5 + 1.0 / layer.calls)


def warms_up(layer: Mid, x: Tensor) -> Tensor:
    layer.calls += 1
    return x * (2 if layer.calls > 100 else 1)


def warms_up_by_a_dictionary(layer: Mid, x: Tensor) -> Tensor:
    layer.counts["calls"] += 1
    return x * (2 if layer.counts["calls"] > 100 else 1)


def warms_up_by_an_object(layer: Mid, x: Tensor) -> Tensor:
    layer.settings.calls += 1
    return x * (2 if layer.settings.calls > 100 else 1)


def warms_up_by_the_class(layer: Mid, x: Tensor) -> Tensor:
    Mid.all_calls += 1
    return x * (2 if Mid.all_calls > 100 else 1)


def remembers(layer: Mid, x: Tensor) -> Tensor:
    made = x if layer.kept is None else x + layer.kept
    layer.kept = x.detach()
    return made


def averages_without_a_buffer(layer: Mid, x: Tensor) -> Tensor:
    with torch.no_grad():
        layer.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return x - layer.average


def hooks_a_tensor(layer: Mid, x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * 0.1)
    return x


def hooks_a_node(layer: Mid, x: Tensor) -> Tensor:
    if x.grad_fn is not None:
        x.grad_fn.register_prehook(lambda gradients: (gradients[0] * 0.1,))
    return torch.sin(x)


def checks_the_batch(layer: Mid, x: Tensor) -> Tensor:
    return x - x.mean(0) if x.shape[0] > 1 else x


def asks_for_gradients(layer: Mid, x: Tensor) -> Tensor:
    return x if torch.is_grad_enabled() else x * 2


def knows_of_tracing(layer: Mid, x: Tensor) -> Tensor:
    return x * 2 if torch.compiler.is_compiling() else x


def notes_and_counts(layer: Mid, x: Tensor) -> Tensor:
    """Keeps what nobody reads."""
    layer.calls += 1
    layer.log.append(x.shape[0])
    layer.kept = x
    return x


def teaches_in_inference_mode(layer: Mid, x: Tensor) -> Tensor:
    with torch.inference_mode():
        wise = layer.other(x)
    return x + wise.clone()


@torch.inference_mode()
def _wise(layer: Mid, x: Tensor) -> Tensor:
    made: Tensor = layer.other(x)
    return made


def teaches_by_decorator(layer: Mid, x: Tensor) -> Tensor:
    return x + _wise(layer, x).clone()


def teaches_without_gradients(layer: Mid, x: Tensor) -> Tensor:
    with torch.no_grad():
        wise = layer.other(x)
        with torch.enable_grad():
            seen = layer.other(x)
    return x + wise + seen + layer.other(x).detach()


def checkpoints(layer: Mid, x: Tensor) -> Tensor:
    made: Tensor = checkpoint(layer.other, x, use_reentrant=False)
    return made


LOSE_GRADIENTS: dict[str, Change] = {
    "backward by hand": lambda _, x: Sign.apply(x),  # type: ignore[no-untyped-call, no-any-return]
    "backward by hand, bound at import": lambda _, x: clipped(x),  # type: ignore[no-untyped-call, no-any-return]
    "hook on a tensor": hooks_a_tensor,
    "hook on a node": hooks_a_node,
    "layers dropped by random": drops_by_random,
    "mixing by numpy": drops_by_numpy,
    "a counter": anneals,
    "a memory": remembers,
    "the batch size": checks_the_batch,
}
"""Layers that would train another model than the one that was written, if they were traced all the same."""


class Centred(nn.Module):
    """Assigns its buffers in training, one of them twice, and reads them before and after."""

    centre: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        before = self.centre
        if self.training:
            self.calls = self.calls + 1
            self.centre = 0.9 * self.centre + 0.1 * x.detach().mean(0)
            self.centre = self.centre.clamp(-1, 1)
        return (x - self.centre + 0.1 * before) * (self.calls / 10).clamp(max=1)


class WritesWeights(nn.Module):
    """Clamps a weight in its forward, as a critic of a Wasserstein GAN does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.linear.weight.clamp_(-0.1, 0.1)
        return self.linear(x)


class CheckpointedNorm(nn.Module):
    """Batch norm runs once more when the region is computed again."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return made


class Padded(nn.Module):
    """An encoder over padded tokens, whose fused path for evaluation leaves the padded positions out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Embedding(9, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True)
        self.mid = nn.TransformerEncoder(layer, 1)
        self.b = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.b(self.mid(self.enter(ids), src_key_padding_mask=ids == 0))
