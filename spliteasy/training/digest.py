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

from spliteasy.runtime.accelerator import to_host

_ROW_WORDS = 1024


def digest_of(values: Sequence[Tensor | int | None]) -> str:
    """32 hexadecimal digits over dtypes, shapes and bits of the values, in order, wherever they lie.

    Of what lies on an accelerator only the sums and the ends come to the host.
    """
    hasher = hashlib.blake2b(digest_size=16)
    pieces = [_pieces(value) if isinstance(value, Tensor) else None for value in values]
    remote = iter(to_host([x for pair in pieces if pair is not None for x in pair]))
    for value, pair in zip(values, pieces, strict=True):
        if not isinstance(value, Tensor):
            hasher.update(repr(value).encode())
            continue
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        if pair is None:
            _update(hasher, value)
        else:
            for _ in pair:
                hasher.update(next(remote).numpy().tobytes())
    return hasher.hexdigest()


def _update(hasher: hashlib.blake2b, tensor: Tensor) -> None:
    raw = _bytes_of(tensor).numpy()
    row_bytes = _ROW_WORDS * 8
    rows = raw.size // row_bytes
    if rows:
        # In numpy: torch would first widen every word, and wants the words aligned.
        words = raw[: rows * row_bytes].view(np.uint64).reshape(rows, _ROW_WORDS)
        hasher.update(np.add.reduce(words, axis=1).tobytes())
    hasher.update(raw[rows * row_bytes :].tobytes())


def _pieces(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what `_update` hashes of a tensor, computed on its accelerator; None for one of the host's.

    Sums modulo 2^64 are the same in any order.
    """
    if tensor.device.type == "cpu":
        return None
    raw = _bytes_of(tensor)
    whole = raw.numel() - raw.numel() % (_ROW_WORDS * 8)
    words = raw[:whole].clone().view(torch.int64).reshape(-1, _ROW_WORDS)
    return words.sum(1), raw[whole:]


def _bytes_of(tensor: Tensor) -> Tensor:
    # A tensor of one element counts as contiguous whatever its stride, which a view as bytes does not take.
    flat = tensor.detach().contiguous()
    return flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)


def strong_digest(tensor: Tensor) -> str:
    """A cryptographic hash over dtype, shape and bits."""
    hasher = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=32)
    hasher.update(_bytes_of(tensor).cpu().numpy().tobytes())
    return hasher.hexdigest()
