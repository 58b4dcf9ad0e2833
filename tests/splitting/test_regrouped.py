"""Where three or more gradients meet on both sides of a kept value, the split says so, and it stays small."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spliteasy import split
from tests.models.oddities import ManyTerms
from tests.splitting.parity import compare, loss_of, received, send_back

TERMS = 4
ROUNDING = 2.0**-24


def plain_loss(model: ManyTerms, uses: list[Tensor]) -> Tensor:
    """The rest of `ManyTerms` after its tanh, each use of the value given apart."""
    middle = torch.sin(uses[0]) + model.b(uses[1])
    return loss_of([model.d(model.c(middle) * uses[2]) + torch.exp(uses[3])])


def test_says_so_and_is_bounded() -> None:
    model, batch = ManyTerms(), torch.randn(64, 6)
    value = torch.tanh(model.a(batch)).detach()
    apart = [value.clone().requires_grad_() for _ in range(TERMS)]
    terms = torch.autograd.grad(plain_loss(model, apart), apart)
    whole = value.clone().requires_grad_()
    (plain,) = torch.autograd.grad(plain_loss(model, [whole] * TERMS), whole)

    with pytest.warns(UserWarning, match=r"gradient of tanh is added in another order.*gives the same bits"):
        parts = split(model, batch, ("tanh", "b"))
    assert parts.regrouped == ("tanh",)
    assert parts.tail is not None
    up, kept = (received([made]) for made in parts.head(batch))
    middle = parts.body(*up)
    down = received(middle)
    loss_of(list(parts.tail(*down, *kept))).backward()
    send_back(middle, down)
    (sent,), (stayed,) = up, kept
    assert isinstance(sent, Tensor)
    assert isinstance(stayed, Tensor)
    assert sent.grad is not None
    assert stayed.grad is not None

    magnitudes = torch.stack(terms).abs().sum(0)
    difference = (stayed.grad + sent.grad - plain).abs()
    assert bool((difference <= 2 * (TERMS - 1) * ROUNDING * magnitudes).all())
    assert bool(difference.any()), "nothing was added in another order: the model shows nothing"


def test_one_use_in_the_body_keeps_the_bits() -> None:
    model = ManyTerms()
    batches = [(torch.randn(4, 6),) for _ in range(3)]
    parts = split(model, batches[0], ("b", "c"))
    assert parts.regrouped == ()
    assert compare(model, parts, batches) == {}
