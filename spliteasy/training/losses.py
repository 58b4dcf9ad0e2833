"""Losses by name. Each takes (outputs, targets), tuples of tensors, and gives a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from spliteasy.errors import JobError

LossFunction = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
"""(outputs, targets) -> the mean loss of the batch, shape []."""


class UsersLoss:
    """A loss of the user's own, as plain PyTorch calls it: a single output or target is the tensor itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        value: Tensor = self.function(
            *(group[0] if len(group) == 1 else group for group in (outputs, targets))
        )
        return value

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The loss's own parameters, by the names that they have in the tail: they begin with `loss.`."""
        if not isinstance(self.function, nn.Module):
            return []
        return [(f"loss.{name}", parameter) for name, parameter in self.function.named_parameters()]


def _on_one(function: Callable[[Tensor, Tensor], Tensor], name: str) -> LossFunction:
    def loss(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
        if len(outputs) != 1 or len(targets) != 1:
            raise JobError(
                f"loss {name} takes one output and one target, got {len(outputs)} and {len(targets)}",
                hint="write a function over (outputs, targets) and name it in loss.function",
            )
        return function(outputs[0], targets[0])

    return loss


_TENSOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "nll": F.nll_loss,
    "bce_with_logits": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
}

LOSSES: dict[str, LossFunction] = {name: _on_one(f, name) for name, f in _TENSOR_LOSSES.items()}

CLASS_LOSSES = frozenset({"cross_entropy", "nll"})
"""Losses whose targets are class numbers: 0 to the outputs' dimension 1, or `IGNORED_CLASS`."""

IGNORED_CLASS = -100
"""The class number that torch's losses leave out."""
