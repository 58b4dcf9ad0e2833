"""Chains of modules."""

from __future__ import annotations

from torch import Tensor, nn


def conv_unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Chain(nn.Module):
    """Convolutions with batch norm, then a linear layer. Input (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_unit(1, 6)
        self.mid = nn.Sequential(conv_unit(6, 8), conv_unit(8, 8))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.mid(self.stem(x)))
        return self.fc(x.view(x.size(0), -1))
