"""The base of all codecs: `encode` and `decode`, with all that they share.

A codec packs floating-point tensors only. Integers, masks, empty tensors and whatever is not larger than
the packed form travel as they are: parts `(tensor,)`, meta `{}`. What is packed is the flat run of the
tensor's elements in memory order; its strides travel in the meta where they are not row-major, so that a
permuted activation comes back permuted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from spliteasy.codecs.layout import MAX_STRIDE, Layout, dense, is_dense, row_major
from spliteasy.errors import WireError

Meta = Mapping[str, int | str | list[int]]
"""The values that the decoder needs beside the parts: plain JSON, no floats. Most codecs need none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A tensor as it travels.

    The parts may share memory with the tensor that was encoded: it must not change until they are used.
    `memory` is what error feedback holds back for the next step; None under codecs without feedback.
    """

    parts: tuple[Tensor, ...]
    meta: Meta = field(default_factory=dict)
    memory: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the parts, without the message around them."""
        return sum(part.nbytes for part in self.parts)


class Codec(ABC):
    """A way to pack tensors. Immutable and without state: one may serve many sessions and threads."""

    lossless: ClassVar[bool] = False
    """Decoding gives the very bits that were encoded."""
    rowwise: ClassVar[bool] = False
    """A sample's elements are packed alike whatever samples are beside it."""
    feedback: ClassVar[bool] = False
    """`encode` takes and returns a memory that is part of the session's state."""
    typical_ratio: float = 1.0
    """Packed bytes over the tensor's, for float32; `auto` learns the real one once the codec is in use."""
    seconds_per_byte: float = 0.0
    """Encoding and decoding a byte of the tensor takes about this long (the table in docs/codecs.md)."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The text that `parse_codec` makes this codec of."""

    def encode(self, tensor: Tensor, *, seed: int | None = None, memory: Tensor | None = None) -> Encoded:
        """Pack the tensor: a pure function of the arguments, none of which is changed.

        `seed`: None rounds to nearest (activations); a number (0 to 2^64 - 1) makes rounding unbiased
        (gradients), its random bits a function of the seed alone. `memory`: what the last encode of this
        place returned (same shape and dtype), None for nothing held back. Codecs that don't round or
        have no feedback ignore them.
        """
        tensor = dense(tensor)
        layout = Layout.of(tensor)
        if not self.packs(layout.shape, tensor.dtype):
            return Encoded(parts=(tensor,))
        held = None
        if self.feedback and memory is not None:
            if (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(
                    f"memory of {tuple(memory.shape)} {memory.dtype} for a tensor of"
                    f" {layout.shape} {tensor.dtype}: keep one memory for each shape"
                )
            held = layout.flatten(memory.detach())
        packed = self.pack(layout.flatten(tensor), layout, seed, held)
        meta = packed.meta if layout.row_major else {**packed.meta, "strides": list(layout.strides)}
        kept = layout.unflatten(packed.memory) if packed.memory is not None else None
        return replace(packed, meta=meta, memory=kept)

    def decode(
        self, parts: Sequence[Tensor], meta: Meta, *, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """The tensor, of exactly this shape and dtype: the same bits everywhere for the same message.

        It may share memory with the parts, so treat it as read-only where they are. Raises `WireError`
        for anything that this codec's `encode` does not write, before allocating anything; what it then
        allocates is bounded by the expected tensor's size.
        """
        shape = tuple(shape)
        if not self.packs(shape, dtype):
            expect_meta(meta)
            (part,) = expect_parts(parts, 1)
            return expect_part(part, shape, dtype)
        strides = meta.get("strides")
        layout = Layout(shape, row_major(shape) if "strides" not in meta else _checked(strides, shape))
        rest = {key: value for key, value in meta.items() if key != "strides"}
        return layout.unflatten(self.unpack(parts, rest, layout, dtype))

    def packs(self, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
        """Return whether tensors of that shape and dtype are packed at all. Both sides ask this."""
        return dtype.is_floating_point and 0 not in shape

    @abstractmethod
    def pack(self, flat: Tensor, layout: Layout, seed: int | None, memory: Tensor | None) -> Encoded:
        """`encode` of the elements in memory order; `memory` too is flat."""

    @abstractmethod
    def unpack(self, parts: Sequence[Tensor], meta: Meta, layout: Layout, dtype: torch.dtype) -> Tensor:
        """`decode` to the `layout.numel` elements in memory order; `meta` is without the strides."""


def expect_meta(meta: Meta, *keys: str) -> None:
    """Raise `WireError` unless the meta has these keys and no others."""
    if meta.keys() != set(keys):
        raise WireError(f"a packed tensor's meta has {sorted(meta)!s:.100}, not {sorted(keys)}")


def expect_parts(parts: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    if len(parts) != count:
        raise WireError(f"a packed tensor has {len(parts)} parts, not {count}")
    return parts


def expect_part(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the part, if it is a dense tensor of that shape and dtype on the CPU; else `WireError`."""
    if not isinstance(part, Tensor) or part.layout is not torch.strided or part.device.type != "cpu":
        raise WireError("a part of a packed tensor is not a plain tensor")
    if (tuple(part.shape), part.dtype) != (shape, dtype):
        raise WireError(f"a part of a packed tensor is {tuple(part.shape)} {part.dtype}, not {shape} {dtype}")
    if part.numel() and not is_dense(shape, part.stride()):
        raise WireError(f"a part of a packed tensor has strides {part.stride()} at shape {shape}")
    return part


def expect_flat(part: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return the part, if it is a flat tensor of `count` elements; else `WireError`."""
    return expect_part(part, (count,), dtype)


def _checked(strides: object, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(strides, list) or len(strides) != len(shape):
        raise WireError(f"the strides of a packed tensor are not a list of {len(shape)}")
    if any(type(stride) is not int or not 0 <= stride <= MAX_STRIDE for stride in strides):
        raise WireError("a stride of a packed tensor is not an integer from 0 on")
    checked = tuple(strides)
    if checked == row_major(shape) or not is_dense(shape, checked):
        raise WireError(f"the strides of a packed tensor do not fill shape {shape} in an order of their own")
    return checked
