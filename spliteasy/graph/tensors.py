"""Tensors as safetensors bytes, with their strides.

Safetensors stores contiguous tensors. One whose elements are dense but laid out in another order
(channels last, a transposed weight) is stored as it lies in memory, and the metadata keep its strides:
a contiguous copy would change the last bits of what follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph import limits


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The same bytes for the same tensors, whatever the order of the mapping."""
    stored: dict[str, Tensor] = {}
    strides: dict[str, list[int]] = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        plain = tensor.clone(memory_format=torch.contiguous_format)
        if tensor.stride() != plain.stride() and tensor.numel() and is_dense(tensor.shape, tensor.stride()):
            strides[name] = list(tensor.stride())
            plain = tensor.as_strided((tensor.numel(),), (1,)).reshape(tensor.shape).clone()
        stored[name] = plain
    metadata = {"strides": json.dumps(strides, sort_keys=True)} if strides else None
    return bytes(save(stored, metadata))


def tensors_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Tensors of their own memory. Raises `PortableError` for bytes that are not safetensors."""
    try:
        stored: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PortableError(f"the tensors are malformed: {error!s:.200}") from None
    for name, strides in _strides(data).items():
        if name not in stored or not is_dense(stored[name].shape, strides):
            raise PortableError(f"tensor {name[:60]!r} has impossible strides")
        stored[name] = stored[name].as_strided(stored[name].shape, strides)
    return stored


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the strides cover one block of memory, each element once. A dimension of size one may
    have any stride."""
    if len(shape) != len(strides):
        return False
    block = 1
    for stride, size in sorted(
        (stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1
    ):
        if stride != block:
            return False
        block *= size
    return True


def _strides(data: bytes) -> dict[str, list[int]]:
    """The strides in the header, whose form `load` has checked."""
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        strides = json.loads(metadata.get("strides", "{}"))
    except (ValueError, RecursionError):
        raise PortableError("the tensors' strides are malformed") from None
    if not isinstance(strides, dict) or not all(_is_strides(value) for value in strides.values()):
        raise PortableError("the tensors' strides are malformed")
    return {str(name): value for name, value in strides.items()}


def _is_strides(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= limits.DIMENSIONS
        and all(type(stride) is int and 0 <= stride <= limits.ELEMENTS for stride in value)
    )
