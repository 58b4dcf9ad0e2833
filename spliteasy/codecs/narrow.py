"""`fp16` and `bf16`: wider floats rounded to 16 bits, to nearest even.

`fp16` has 11 bits of precision; what is beyond 65504 becomes infinite, which shows, and what is below
6e-8 becomes 0. `bf16` has 8 bits of precision and the range of float32: the safer one for gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spliteasy.codecs.codec import Codec, Encoded, Meta, expect_flat, expect_meta, expect_parts
from spliteasy.codecs.layout import Layout


class Narrow(Codec):
    """One part: the elements in `narrow`, a 16-bit dtype. NaN and infinities stay what they are."""

    rowwise = True
    typical_ratio = 0.5
    seconds_per_byte = 0.25e-9

    def __init__(self, name: str, narrow: torch.dtype) -> None:
        self._name = name
        self._narrow = narrow

    @property
    def name(self) -> str:
        return self._name

    def packs(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return super().packs(shape, dtype) and dtype.itemsize > self._narrow.itemsize

    def pack(self, flat: Tensor, layout: Layout, seed: int | None, memory: Tensor | None) -> Encoded:
        return Encoded(parts=(flat.to(self._narrow),))

    def unpack(self, parts: Sequence[Tensor], meta: Meta, layout: Layout, dtype: torch.dtype) -> Tensor:
        expect_meta(meta)
        (part,) = expect_parts(parts, 1)
        return expect_flat(part, layout.numel, self._narrow).to(dtype)
