"""A bitmap says in one bit each which elements are there: little-endian bits, rows of 8 to the byte."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spliteasy.codecs.codec import expect_flat
from spliteasy.errors import WireError


def bitmap_bytes(count: int) -> int:
    return -(-count // 8)


def to_bitmap(mask: NDArray[np.bool_]) -> Tensor:
    """uint8, one bit for each element; the last byte's unused bits are 0."""
    return torch.from_numpy(np.packbits(mask, bitorder="little"))


def from_bitmap(part: Tensor, count: int) -> NDArray[np.bool_]:
    """The mask of `count` elements. Raises `WireError`."""
    packed = expect_flat(part, bitmap_bytes(count), torch.uint8).numpy()
    if count % 8 and packed[-1] >> count % 8:
        raise WireError("a bitmap has bits beyond its end")
    return np.unpackbits(packed, count=count, bitorder="little").view(np.bool_)
