"""Vectors of the codecs: tensors, and what each codec makes of them."""

from __future__ import annotations

from typing import Any

import torch

from spliteasy.codecs import parse_codec
from tests.vectors.draws import bits

CODECS = ("fp32", "fp16", "bf16", "int8", "topk:0.3", "lossless")


def codecs() -> dict[str, Any]:
    """Each codec on a few tensors: the parts that travel, the meta beside them, and what comes out."""
    tensors = (
        torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7 - 1,
        torch.zeros(2, 8),
        torch.tensor([[1e-30, -65504.0, 3e5, 0.0]]),
    )
    found = []
    for name in CODECS:
        codec = parse_codec(name)
        for tensor in tensors:
            encoded = codec.encode(tensor, seed=7)
            decoded = codec.decode(encoded.parts, encoded.meta, shape=tensor.shape, dtype=tensor.dtype)
            found.append(
                {
                    "codec": name,
                    "value": bits(tensor),
                    "parts": [bits(part) for part in encoded.parts],
                    "meta": encoded.meta,
                    "decoded": bits(decoded),
                }
            )
    return {"seed": 7, "codecs": found}
