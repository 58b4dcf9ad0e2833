"""A quick digest of tensors, to tell whether two computations gave the same bits.

It guards against honest differences (other hardware, other torch), not against forgery: rows of the raw
64-bit words are added up, modulo 2^64, at memory speed, and only the sums are hashed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
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
    # A tensor of one element counts as contiguous whatever its stride, which a view as bytes does not take.
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
    raw = flat.view(torch.uint8).numpy()
    row_bytes = _ROW_WORDS * 8
    rows = raw.size // row_bytes
    if rows:
        # In numpy: torch would first widen every word, and wants the words aligned.
        words = raw[: rows * row_bytes].view(np.uint64).reshape(rows, _ROW_WORDS)
        hasher.update(np.add.reduce(words, axis=1).tobytes())
    hasher.update(raw[rows * row_bytes :].tobytes())


def strong_digest(tensor: Tensor) -> str:
    """A cryptographic hash over dtype, shape and bits."""
    hasher = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=32)
    flat = tensor.detach().contiguous().reshape(-1)
    hasher.update(flat.as_strided((flat.numel(),), (1,)).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
