"""`int8`: one byte an element and one scale a channel.

An element becomes q in -127…127 and comes back as q · scale, where scale is the channel's largest
magnitude / 127, rounded up to bfloat16 (so the product is exact in float32). The error is at most
scale / 2 rounding to nearest, below one scale and with mean 0 rounding at random. A channel that holds a
NaN or an infinity comes back as NaN throughout.

The channels are dimension 1 of images (four dimensions and more), else the last one, as in tokens;
a tensor of less than two dimensions is one channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spliteasy.codecs.codec import Codec, Encoded, Meta, expect_flat, expect_meta, expect_parts
from spliteasy.codecs.layout import Layout
from spliteasy.errors import WireError

_LEVELS = 127
_MIN_SCALE = 2.0**-120
"""The reciprocal of this scale is finite, and no product with it is subnormal (some processors flush those to
0)."""
_BLOCK = 1 << 16
"""Elements worked on at a time: the passes over them then stay in the processor's cache."""
_MIN_ROW = 128
"""Rows shorter than this are not worth a scalar factor each."""


class Int8(Codec):
    """Two parts: the elements (int8) and the channels' scales (bfloat16)."""

    name = "int8"
    typical_ratio = 0.25
    seconds_per_byte = 0.7e-9

    def packs(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return super().packs(shape, dtype) and dtype.itemsize > 1

    def pack(self, flat: Tensor, layout: Layout, seed: int | None, memory: Tensor | None) -> Encoded:
        channels, inner = _channels(layout)
        flat = flat.to(torch.float32)
        scales = _scales(flat.view(-1, channels * inner), channels)
        broken = scales.isnan()
        if broken.any():
            # Converting a NaN to an integer is undefined: zeros, which the NaN scale makes NaN again.
            flat = flat.view(-1, channels, inner).masked_fill(broken[:, None], 0).view(-1)
        quantized = torch.empty(layout.numel, dtype=torch.int8)
        factors = torch.where(broken, 0, scales.to(torch.float32).reciprocal())
        rows, factor = _rows(flat, factors, inner)
        dither = _Dither(seed) if seed is not None else None
        out = quantized.view(rows.shape)
        for block in _blocks(rows):
            scaled = rows[block] * factor[block if len(factor) > 1 else slice(None)]
            if dither is not None:
                dither.add_to(scaled)
            out[block] = scaled.round_()
        return Encoded(parts=(quantized, scales))

    def unpack(self, parts: Sequence[Tensor], meta: Meta, layout: Layout, dtype: torch.dtype) -> Tensor:
        expect_meta(meta)
        quantized, scales = expect_parts(parts, 2)
        channels, inner = _channels(layout)
        quantized = expect_flat(quantized, layout.numel, torch.int8)
        scales = expect_flat(scales, channels, torch.bfloat16)
        if not (scales.isnan() | (scales >= _MIN_SCALE) & scales.isfinite()).all():
            raise WireError("a scale is neither a positive number nor NaN")
        flat = torch.empty(layout.numel, dtype=torch.float32)
        rows, factor = _rows(flat, scales.to(torch.float32), inner)
        source = quantized.view(rows.shape)
        for block in _blocks(rows):
            rows[block].copy_(source[block]).mul_(factor[block if len(factor) > 1 else slice(None)])
        return flat.to(dtype)


def _channels(layout: Layout) -> tuple[int, int]:
    """The number of channels, and how many neighbours in memory belong to one before the next begins."""
    dims = len(layout.shape)
    if dims < 2:
        return 1, layout.numel
    dim = 1 if dims > 3 else dims - 1
    channels = layout.shape[dim]
    return (channels, layout.strides[dim]) if channels > 1 else (1, layout.numel)


def _scales(rows: Tensor, channels: int) -> Tensor:
    """(rows, channels · inner) to a scale for each channel, bfloat16; NaN where an element is not finite."""
    largest = torch.maximum(rows.amax(0), rows.amin(0).neg_()).view(channels, -1).amax(1)
    scales = largest.div_(_LEVELS).clamp_(min=_MIN_SCALE)
    # Up to the next bfloat16: those are the float32 whose low 16 bits are 0.
    rounded = scales.view(torch.int32).add(0xFFFF).bitwise_and(-0x10000).view(torch.float32)
    return torch.where(scales.isfinite(), rounded, torch.nan).to(torch.bfloat16)


def _rows(flat: Tensor, factors: Tensor, inner: int) -> tuple[Tensor, Tensor]:
    """A matrix view of the elements and the factors that broadcast to it, such that rows are long.

    Either each row lies within a channel (one factor a row), or each goes through all channels.
    """
    if inner >= _MIN_ROW:
        rows = flat.view(-1, inner)
        return rows, factors.repeat(len(rows) // len(factors)).unsqueeze(1)
    rows = flat.view(-1, inner * len(factors))
    return rows, factors.repeat_interleave(inner).unsqueeze(0)


def _blocks(rows: Tensor) -> list[slice]:
    count = max(1, _BLOCK // rows.shape[1])
    return [slice(start, start + count) for start in range(0, len(rows), count)]


class _Dither:
    """Numbers drawn evenly from the odd multiples of 2^-16 within ±1/2, as a function of the seed alone.

    Added before rounding to nearest they make it unbiased (within 2^-16 of a scale). As they stay 2^-16
    short of 1/2, whole numbers stay what they are: zeros come back as zeros, and the largest element, at
    most 2^-17 above 127 by rounding, does not become 128.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.SFC64(seed)

    def add_to(self, scaled: Tensor) -> None:
        """Add the next numbers to a contiguous float32 tensor, in memory order."""
        words = torch.from_numpy(self._bits.random_raw(-(-scaled.numel() // 4))).view(torch.int16)
        numbers = words[: scaled.numel()].bitwise_or_(1).to(torch.float32)
        scaled.view(-1).add_(numbers, alpha=2.0**-16)
