"""Inputs to try a model on: the example, and random ones of its kind at other batch sizes and lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from spliteasy.errors import JobError
from spliteasy.graph.lengths import FreeLength
from spliteasy.runtime.randomness import seed_of

ROWS = 8
"""Samples of the example that are tried at most."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One step to take: on these inputs, from torch's generator seeded so."""

    name: str
    inputs: tuple[Tensor, ...]
    seed: int
    input_gradients: bool = False
    """The floating inputs take a gradient as well."""
    certain: bool = False
    """The model must be able to take the inputs. Without it they are a guess that may be of the wrong kind.
    """
    spare: bool = False
    """The trial is made only where the one before it said little."""

    def leaves(self) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        """The inputs that take a gradient, by name, and copies of all inputs to call the model with."""
        leaves = {
            f"input {place}": tensor.detach().clone().requires_grad_()
            for place, tensor in enumerate(self.inputs)
            if self.input_gradients and tensor.is_floating_point()
        }
        return leaves, tuple(
            leaves.get(f"input {place}", tensor.detach()).clone() for place, tensor in enumerate(self.inputs)
        )


def trials(example: tuple[Tensor, ...], free: FreeLength | None = None) -> list[Trial]:
    """The example as training sees it, then others that also ask for the inputs' gradients; where the length
    of samples is free, beginnings of the example too."""
    rows = min(example[0].shape[0], ROWS)
    own = tuple(tensor[:rows] for tensor in example)
    other = 3 if rows != 3 else 5
    generator = torch.Generator().manual_seed(seed_of("trial"))
    order = torch.arange(other) % example[0].shape[0]
    return [
        Trial("the example", own, 1, any(tensor.requires_grad for tensor in example), certain=True),
        Trial(
            f"{other} random samples like the example",
            tuple(_like(tensor, other, generator) for tensor in example),
            2,
            input_gradients=True,
        ),
        Trial(
            f"{other} samples of the example",
            tuple(tensor[order] for tensor in example),
            3,
            input_gradients=True,
            spare=True,
        ),
        Trial("one sample", tuple(tensor[:1] for tensor in example), 4),
        *(_shorter(tuple(tensor[order] for tensor in example), free) if free is not None else ()),
    ]


def _shorter(samples: tuple[Tensor, ...], free: FreeLength) -> list[Trial]:
    """Beginnings of samples of the example, which the model must be able to take."""
    return [
        Trial(f"the example's first {length} places", free.cut(samples, length), 5, certain=True)
        for length in free.tried
    ]


def _like(example: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Return a random tensor of the example's dtype and range; of a small range where it has none."""
    shape = (batch, *example.shape[1:])
    if example.numel() == 0 or example.is_complex():
        return torch.zeros(shape, dtype=example.dtype)
    if example.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < example.double().mean().clamp(0.1, 0.9)
    if example.is_floating_point():
        values = example.double()
        low, high = float(values.min()), float(values.max())
        if not low < high:
            low, high = low - 1.0, high + 1.0
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return drawn.to(example.dtype)
    smallest, largest = int(example.min()), int(example.max())
    return torch.randint(
        smallest, max(largest, smallest + 1) + 1, shape, generator=generator, dtype=torch.int64
    ).to(example.dtype)


def tensors_of(outputs: Any) -> list[Tensor]:
    """The tensors in what a model returned, in the order in which a trace has them."""
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def one_line(error: Exception) -> str:
    """Return the text of an error in one line of bearable length."""
    return " ".join(str(error).split())[:300]


def refuse_failure(error: Exception, trial: Trial, training: bool, what: str) -> NoReturn:
    """Raises `JobError`: plain PyTorch itself fails."""
    raise JobError(
        f"the {what} fails on {trial.name} in {'training' if training else 'evaluation'} mode, before it is"
        f" split: {type(error).__name__}: {one_line(error)}",
        hint=f"call the {what} on the example by yourself in that mode, and run the backward pass",
    ) from error
