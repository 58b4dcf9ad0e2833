"""Tensors as safetensors bytes, with their dimension order.

Safetensors stores contiguous tensors. One whose elements are dense but permuted (channels last, a
transposed weight) is stored in memory order, and the metadata keep its strides: a contiguous copy
would change the last bits of what follows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from spliteasy.errors import PortableError
from spliteasy.portable import limits


def tensors_to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The same bytes for the same tensors, whatever the order of the mapping."""
    stored: dict[str, Tensor] = {}
    orders: dict[str, list[int]] = {}
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        order = memory_order(tensor)
        if order != sorted(order):
            orders[name] = order
        stored[name] = tensor.permute(order).contiguous().clone()
    metadata = {"orders": json.dumps(orders, sort_keys=True)} if orders else None
    return bytes(save(stored, metadata))


def tensors_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Tensors of their own memory. Raises `PortableError` for bytes that are not safetensors."""
    try:
        stored = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise PortableError(f"the tensors are malformed: {error!s:.200}") from None
    orders = _orders(data)
    for name, order in orders.items():
        if name not in stored or sorted(order) != list(range(stored[name].dim())):
            raise PortableError(f"tensor {name[:60]!r} has an impossible dimension order")
        inverse = [order.index(place) for place in range(len(order))]
        stored[name] = stored[name].permute(inverse)
    return stored


def memory_order(tensor: Tensor) -> list[int]:
    """Dimensions from the slowest to the fastest in memory; the plain order if the tensor is not dense."""
    plain = list(range(tensor.dim()))
    strides = tensor.stride()
    order = sorted(plain, key=lambda dim: -strides[dim])
    return order if tensor.permute(order).is_contiguous() and not tensor.is_contiguous() else plain


def _orders(data: bytes) -> dict[str, list[int]]:
    """The dimension orders in the header, whose form `load` has checked."""
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        orders = json.loads(metadata.get("orders", "{}"))
    except (ValueError, RecursionError):
        raise PortableError("the tensors' dimension orders are malformed") from None
    fine = isinstance(orders, dict) and all(_is_order(order) for order in orders.values())
    if not fine:
        raise PortableError("the tensors' dimension orders are malformed")
    return {str(name): order for name, order in orders.items()}


def _is_order(order: object) -> bool:
    return (
        isinstance(order, list) and len(order) <= limits.DIMENSIONS and all(type(dim) is int for dim in order)
    )
