"""A quick digest of tensors, to tell whether two computations gave the same bits.

It guards against honest differences (other hardware, other torch), not against forgery: rows of the raw
32-bit words are added up at memory speed, and only the sums are hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_ROW_WORDS = 1024


def digest_of(values: Sequence[Tensor | int | None]) -> str:
    """32 hexadecimal digits over dtypes, shapes and bits of the values, in order."""
    hasher = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, Tensor):
            hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
            _update(hasher, value)
        else:
            hasher.update(repr(value).encode())
    return hasher.hexdigest()


def _update(hasher: hashlib.blake2b, tensor: Tensor) -> None:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words = raw.numel() // 4 // _ROW_WORDS * _ROW_WORDS
    if words:
        rows = raw[: words * 4].view(torch.int32).view(-1, _ROW_WORDS)
        hasher.update(rows.sum(dim=1, dtype=torch.int64).numpy().tobytes())
    hasher.update(raw[words * 4 :].numpy().tobytes())
