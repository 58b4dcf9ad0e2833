"""`fp32`: tensors as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spliteasy.codecs.codec import Codec, Encoded, Meta
from spliteasy.codecs.layout import Layout


class Identity(Codec):
    """Packs nothing, copies nothing: the part is the tensor, with its own dtype and strides."""

    lossless = True
    rowwise = True
    name = "fp32"

    def packs(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        return False

    def pack(self, flat: Tensor, layout: Layout, seed: int | None, memory: Tensor | None) -> Encoded:
        raise AssertionError("nothing is packed")

    def unpack(self, parts: Sequence[Tensor], meta: Meta, layout: Layout, dtype: torch.dtype) -> Tensor:
        raise AssertionError("nothing is packed")
