"""Tensors as safetensors bytes, with their strides.

Safetensors stores contiguous tensors. One whose elements are dense but laid out in another order
(channels last, a transposed weight) is stored as it lies in memory, and the metadata keep its strides:
a contiguous copy would change the last bits of what follows. Complex ones, which it does not all know, are
stored as pairs of real numbers, and the metadata name them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.graph import limits

_HALVES = (torch.float32, torch.float64)
"""The kinds of numbers whose pairs are complex ones."""


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The same bytes for the same tensors, whatever the order of the mapping."""
    stored: dict[str, Tensor] = {}
    strides: dict[str, list[int]] = {}
    pairs: list[str] = []
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        plain = tensor.clone(memory_format=torch.contiguous_format)
        if tensor.stride() != plain.stride() and tensor.numel() and is_dense(tensor.shape, tensor.stride()):
            strides[name] = list(tensor.stride())
            plain = tensor.as_strided((tensor.numel(),), (1,)).reshape(tensor.shape).clone()
        if plain.is_complex():
            pairs.append(name)
            plain = torch.view_as_real(plain.resolve_conj())
        stored[name] = plain
    told = {"strides": strides, "complex": pairs}
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in told.items() if value} or None
    return bytes(save(stored, metadata))


def tensors_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Tensors of their own memory. Raises `PortableError` for bytes that are not safetensors."""
    try:
        stored: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PortableError(f"the tensors are malformed: {error!s:.200}") from None
    told = _metadata(data)
    for name in _complex(told):
        if name not in stored or stored[name].dtype not in _HALVES or stored[name].shape[-1:] != (2,):
            raise PortableError(f"tensor {name[:60]!r} holds no complex numbers")
        stored[name] = torch.view_as_complex(stored[name])
    for name, strides in _strides(told).items():
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


def _metadata(data: bytes) -> dict[str, Any]:
    """What we say of the tensors in the header, whose form `load` has checked."""
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        return {key: json.loads(metadata[key]) for key in ("strides", "complex") if key in metadata}
    except (ValueError, RecursionError):
        raise PortableError("the tensors' strides are malformed") from None


def _complex(told: Mapping[str, Any]) -> list[str]:
    """The names of the complex tensors, once each."""
    names = told.get("complex", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PortableError("the names of the complex tensors are malformed")
    return list(dict.fromkeys(names))


def _strides(told: Mapping[str, Any]) -> dict[str, list[int]]:
    """The strides of the tensors that are not contiguous."""
    strides = told.get("strides", {})
    if not isinstance(strides, dict) or not all(_is_strides(value) for value in strides.values()):
        raise PortableError("the tensors' strides are malformed")
    return {str(name): value for name, value in strides.items()}


def _is_strides(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= limits.DIMENSIONS
        and all(type(stride) is int and 0 <= stride <= limits.ELEMENTS for stride in value)
    )
