"""`topk:RATIO`: only the largest elements travel, the rest is held back and added to the next tensor.

Error feedback after Seide et al. 2014 ("1-bit stochastic gradient descent") and Stich et al. 2018
("Sparsified SGD with memory"): with the sum s = tensor + memory, what is sent and the new memory hold
each element of s in one of the two, so nothing is ever lost; only the one addition rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spliteasy.codecs.bitmap import bitmap_bytes, from_bitmap, to_bitmap
from spliteasy.codecs.codec import Codec, Encoded, Meta, expect_flat, expect_meta, expect_parts
from spliteasy.codecs.layout import Layout
from spliteasy.codecs.words import words_of
from spliteasy.errors import WireError

_INDEX_BYTES = 4
_MAX_INDEXED = 2**31


class TopK(Codec):
    """Two parts: the values in their own dtype, in memory order, and where they belong.

    The places are int32 indices or a bitmap, whichever is smaller at this ratio. NaN counts as larger
    than infinity, and both as larger than any number: they are sent first. Equal magnitudes: the first.
    """

    feedback = True
    seconds_per_byte = 1.2e-9

    def __init__(self, ratio: float) -> None:
        """`ratio`: how many of the elements travel, above 0 and at most 1."""
        if not 0 < ratio <= 1:
            raise ValueError(f"a ratio of {ratio} is not above 0 and at most 1")
        self._ratio = ratio
        self.typical_ratio = min(2 * ratio, ratio + 1 / 32)

    @property
    def name(self) -> str:
        return f"topk:{self._ratio}"

    def pack(self, flat: Tensor, layout: Layout, seed: int | None, memory: Tensor | None) -> Encoded:
        total = flat.clone() if memory is None else flat + memory
        places = _largest(total, self._kept(layout))
        values = total[places]
        total[places] = 0
        if self._as_bitmap(layout):
            mask = np.zeros(layout.numel, dtype=np.bool_)
            mask[places.numpy()] = True
            return Encoded(parts=(values, to_bitmap(mask)), memory=total)
        return Encoded(parts=(values, places.to(torch.int32)), memory=total)

    def unpack(self, parts: Sequence[Tensor], meta: Meta, layout: Layout, dtype: torch.dtype) -> Tensor:
        expect_meta(meta)
        values, where = expect_parts(parts, 2)
        kept = self._kept(layout)
        values = expect_flat(values, kept, dtype)
        if self._as_bitmap(layout):
            places = torch.from_numpy(np.flatnonzero(from_bitmap(where, layout.numel)))
            if len(places) != kept:
                raise WireError(f"a bitmap of {len(places)} places for {kept} values")
        else:
            places = expect_flat(where, kept, torch.int32)
            if places[0] < 0 or places[-1] >= layout.numel or (places[1:] <= places[:-1]).any():
                raise WireError("the places of values are not increasing or not in the tensor")
        return torch.zeros(layout.numel, dtype=dtype).index_copy_(0, places.to(torch.int64), values)

    def _kept(self, layout: Layout) -> int:
        return min(layout.numel, math.ceil(self._ratio * layout.numel))

    def _as_bitmap(self, layout: Layout) -> bool:
        return bitmap_bytes(layout.numel) < self._kept(layout) * _INDEX_BYTES or layout.numel > _MAX_INDEXED


def _largest(flat: Tensor, count: int) -> Tensor:
    """Increasing indices (int64) of the `count` elements of largest magnitude.

    Without its sign bit a float's bits, read as an integer, grow with its magnitude, NaN on top.
    """
    words = words_of(flat)
    magnitudes: NDArray[np.signedinteger] = words & np.iinfo(words.dtype).max
    threshold = np.partition(magnitudes, -count)[-count]
    places = np.flatnonzero(magnitudes >= threshold)
    if len(places) > count:
        tied = magnitudes[places] == threshold
        keep = ~tied
        keep[np.flatnonzero(tied)[: count - int(keep.sum())]] = True
        places = places[keep]
    return torch.from_numpy(places)
