"""Vision models with skips, windows and attention. Inputs (B, 3, 16, 16) but for what a class says."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.chains import conv_unit


class UNet(nn.Module):
    """Skips over the whole body: the outer one goes from head to tail."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = conv_unit(3, 4)
        self.down1 = conv_unit(4, 8)
        self.down2 = conv_unit(8, 8)
        self.up1 = conv_unit(16, 4)
        self.up2 = conv_unit(8, 4)
        self.leave = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.enter(x)
        middle = self.down1(F.max_pool2d(top, 2))
        bottom = self.down2(F.max_pool2d(middle, 2))
        up = self.up1(torch.cat((middle, F.interpolate(bottom, scale_factor=2.0)), 1))
        return self.leave(self.up2(torch.cat((top, F.interpolate(up, size=top.shape[2:])), 1)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.project(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A class token, learned positions, three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(Block(16, 2) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class WindowBlock(nn.Module):
    """Attention within shifted windows of 4 × 4, with a bias by relative position and a mask in a buffer."""

    def __init__(self, width: int, side: int, shift: int) -> None:
        super().__init__()
        self.shift, self.side = shift, side
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(49, 2) * 0.1)
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        apart = place[:, :, None] - place[:, None, :] + 3
        self.register_buffer("index", (apart[0] * 7 + apart[1]).flatten())
        region = torch.zeros(side, side)
        if shift:
            region[-shift:, :] += 1
            region[:, -shift:] += 2
        windows = region.view(side // 4, 4, side // 4, 4).transpose(1, 2).reshape(-1, 16)
        apart_regions = windows[:, None, :] != windows[:, :, None]
        self.register_buffer("mask", apart_regions.float() * -100.0, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        count = side // 4
        y = self.norm(x)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = y.view(batch, count, 4, count, 4, width).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, width)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q * (width // 2) ** -0.5 @ k.transpose(-2, -1)
        scores = scores + self.bias[self.index].view(16, 16, 2).permute(2, 0, 1).unsqueeze(0)
        if self.shift:
            windows = count * count
            scores = scores.view(-1, windows, 2, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, 2, 16, 16)
        y = self.project((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, width))
        y = (
            y.view(batch, count, count, 4, 4, width)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(batch, side, side, width)
        )
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + y


class Merge(nn.Module):
    """Four neighbours become one, of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Windowed transformer in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 1)
        self.stage1 = nn.Sequential(WindowBlock(8, 16, 0), WindowBlock(8, 16, 2))
        self.merge = Merge(8)
        self.stage2 = nn.Sequential(WindowBlock(16, 8, 0), WindowBlock(16, 8, 2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = self.stage2(self.merge(self.stage1(x)))
        return self.head(self.norm(x).mean((1, 2)))


class DenseBlock(nn.Module):
    """Every layer reads all earlier ones, so a value has many uses: gradients of many terms meet."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList(conv_unit(4 + 4 * i, 4) for i in range(5))
        self.leave = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.enter(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.leave(torch.cat(found, 1).mean((2, 3)))
