"""Models on sequences and tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.models.vision import Block


class GPT(nn.Module):
    """Language model on token ids (B, 12), vocabulary 20. `tied`: embedding and output share a weight."""

    def __init__(self, tied: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.positions = nn.Embedding(12, 16)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(16, 2, causal=True) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 20, bias=False)
        if tied:
            self.out.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.drop(x)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class MaskedTransformer(nn.Module):
    """torch's own encoder layers, a padding mask from the ids (0 is padding): booleans cross a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.layer1 = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.layer2 = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x, padding = self.tokens(ids), ids == 0
        x = self.layer2(self.layer1(x, src_key_padding_mask=padding), src_key_padding_mask=padding)
        return self.out(x.masked_fill(padding.unsqueeze(-1), 0.0).mean(1))


class Recurrent(nn.Module):
    """LSTM or GRU classifier of sequences (B, 9, 6)."""

    def __init__(self, kind: str = "lstm") -> None:
        super().__init__()
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        self.enter = nn.Linear(6, 8)
        self.rnn1 = cell(8, 8, batch_first=True, bidirectional=True)
        self.rnn2 = cell(16, 8, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.rnn1(torch.tanh(self.enter(x)))
        x, _ = self.rnn2(x)
        return self.out(self.norm(x)[:, -1])
