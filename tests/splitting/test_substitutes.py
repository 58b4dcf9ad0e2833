"""Library code that a tracer can't follow gives the segments that eager PyTorch equals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from spliteasy import split
from spliteasy.errors import JobError
from spliteasy.splitting.proof.plain_modes import fused_attention
from tests.splitting.parity import compare


class Around(nn.Module):
    """Runs its middle inside something."""

    def __init__(self, around: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.enter, self.middle, self.out = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.around(self.middle, self.enter(x))))


def without_autocast(middle: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.gelu(middle(x))


def no_grad_without_autocast(middle: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.no_grad():
        scale = middle(x).abs().mean(1, keepdim=True)
    return middle(x) / (scale + 1)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "around",
    [
        lambda middle, x: checkpoint(middle, x, use_reentrant=True),
        lambda middle, x: checkpoint(middle, x, use_reentrant=False),
        lambda middle, x: checkpoint(lambda y: F.dropout(middle(y), 0.5), x, use_reentrant=False),
        without_autocast,
        no_grad_without_autocast,
    ],
    ids=["checkpoint, reentrant", "checkpoint", "checkpoint with dropout", "autocast off", "both off"],
)
def test_gradients_are_the_eager_ones(around: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = Around(around).train()
    parts = split(model, torch.randn(4, 8), ("enter", "middle"))
    assert compare(model, parts, [(torch.randn(4, 8),), (torch.randn(3, 8),)]) == {}


def test_a_region_that_casts_is_refused() -> None:
    def cast(middle: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return middle(x).float()

    with pytest.raises(JobError, match="another precision"):
        split(Around(cast), torch.randn(4, 8), ("enter", "middle"))


class Tokens(nn.Module):
    """A stack of transformer layers with a mask, given as the library's tutorials give it."""

    def __init__(self, mask: Tensor, hint: bool | None, decoder: bool) -> None:
        super().__init__()
        self.enter, self.hint, self.decoder = nn.Embedding(20, 16), hint, decoder
        if decoder:
            layer = nn.TransformerDecoderLayer(16, 2, 32, 0.0, batch_first=True)
            self.middle: nn.Module = nn.TransformerDecoder(layer, 1)
        else:
            block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
            self.middle = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)
        self.register_buffer("mask", mask)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.enter(ids)
        if self.decoder:
            return self.out(self.middle(x, x, tgt_mask=self.mask, tgt_is_causal=self.hint))
        return self.out(self.middle(x, mask=self.mask, is_causal=self.hint))


CAUSAL = nn.Transformer.generate_square_subsequent_mask(6)
WINDOW = CAUSAL + CAUSAL.T.roll(3, 0)


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize(("mask", "hint"), [(CAUSAL, None), (CAUSAL, True), (CAUSAL, False), (WINDOW, None)])
def test_masks_of_transformers(mask: Tensor, hint: bool | None, decoder: bool) -> None:
    model = Tokens(mask, hint, decoder).train()
    with fused_attention(False):  # the fused path of evaluation takes the window for another mask
        parts = split(model, torch.randint(20, (4, 6)), ("enter", "middle"))
        assert compare(model, parts, [(torch.randint(20, (4, 6)),), (torch.randint(20, (3, 6)),)]) == {}
