"""The layout of a dense tensor in memory, and the way between the tensor and its flat run of elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_STRIDE = 2**53 - 1
"""The largest stride of a dimension of size 1, which is never walked. JavaScript reads integers exactly up to
here."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Shape and strides (in elements) of a dense tensor: each element has its own place, without gaps."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def row_major(self) -> bool:
        return self.strides == row_major(self.shape)

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        return cls(tuple(tensor.shape), tensor.stride())

    def flatten(self, tensor: Tensor) -> Tensor:
        """The elements in this layout's memory order: a view where the tensor lies like that, else a copy."""
        if tensor.stride() != self.strides:
            tensor = torch.empty_strided(self.shape, self.strides, dtype=tensor.dtype).copy_(tensor)
        return tensor.as_strided((self.numel,), (1,))

    def unflatten(self, flat: Tensor) -> Tensor:
        """The tensor whose elements in memory order are `flat`, as a view."""
        return flat.as_strided(self.shape, self.strides)


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor of that shape, as torch gives them."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
    return tuple(strides)


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True where each element has its own place and there are no gaps.

    Dimensions of size 1 may have any stride: it is never walked, but tells torch's kernels which memory
    format is meant.
    """
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def dense(tensor: Tensor) -> Tensor:
    """The tensor on the CPU without gradient or gaps; the order of its dimensions is kept."""
    tensor = tensor.detach().cpu().resolve_neg()
    if is_dense(tensor.shape, tensor.stride()):
        return tensor
    return tensor.clone(memory_format=torch.preserve_format)
