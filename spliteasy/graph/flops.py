"""Estimate the floating-point operations of a run from shapes alone, while it runs on the meta device.

Operators are counted where torch has taken them apart, so that a linear layer is the matrix product that it
is. Products, convolutions and attention count two operations for each product and sum; factorisations and
inversions the cube of their matrix's side; everything else one for each element that it reads or makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FACTORISES = ("linalg_", "_linalg_", "cholesky", "triangular_solve", "geqrf", "ormqr", "orgqr", "lu_")
"""The names of operators that take a matrix apart or invert it begin so."""
_PLAIN = {"linalg_vector_norm", "linalg_cross"}
"""These begin like them and are no more than a pass over the elements."""
_NOTHING = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"}
_POOLS = ("max_pool", "avg_pool")


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of everything that is called while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self.flops += _flops(func.overloadpacket.__name__, args, made, view=func.is_view)
        return made


def _flops(name: str, args: tuple[Any, ...], made: Any, *, view: bool) -> int:
    if view or name in _NOTHING:
        return 0
    counted = _COUNTED.get(name)
    if counted is not None:
        return counted(args, made)
    tensors = [*_tensors(args), *_tensors((made,))]
    if name.startswith(_FACTORISES) and name not in _PLAIN:
        return sum(_cubes(tensor) for tensor in tensors[:1])
    most = max((tensor.numel() for tensor in tensors), default=0)
    if any(pool in name for pool in _POOLS) and "adaptive" not in name:
        return most * math.prod(_window(args))
    return most


def _product(args: tuple[Any, ...], made: Any) -> int:
    """A product of matrices or vectors, which are the last two tensors among the arguments."""
    left, right = [arg for arg in args if isinstance(arg, Tensor)][-2:]
    return 2 * int(left.numel()) * int(right.shape[-1] if right.dim() > 1 else 1)


def _convolution(args: tuple[Any, ...], made: Any) -> int:
    values, weight, transposed = args[0], args[1], bool(args[6])
    places = values if transposed else made
    # Each place of the one side meets the kernel over the channels of the group that it belongs to.
    return 2 * int(places.numel()) * int(math.prod(weight.shape[1:]))


def _attention(args: tuple[Any, ...], made: Any) -> int:
    query, key, value = args[:3]
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * int(pairs) * int(query.shape[-1] + value.shape[-1])


def _trilinear(args: tuple[Any, ...], made: Any) -> int:
    """`bilinear`, as input, weights, input: each output of a sample meets the weights of its own."""
    return 2 * int(made.numel()) * int(args[1].numel()) // max(1, int(made.shape[-1]))


def _distances(args: tuple[Any, ...], made: Any) -> int:
    return 3 * int(made.numel()) * int(args[0].shape[-1])


def _cubes(matrix: Tensor) -> int:
    """Return the cube of the larger side, for each matrix of a batch."""
    if matrix.dim() < 2:
        return matrix.numel()
    return matrix.numel() * max(matrix.shape[-2:])


def _window(args: tuple[Any, ...]) -> Sequence[int]:
    """The window of a pooling, each of whose outputs reads that many elements."""
    return args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


_COUNTED: dict[str, Callable[[tuple[Any, ...], Any], int]] = {
    "mm": _product,
    "addmm": _product,
    "bmm": _product,
    "baddbmm": _product,
    "addbmm": _product,
    "vdot": _product,
    "mv": _product,
    "addmv": _product,
    "dot": _product,
    "convolution": _convolution,
    "_convolution": _convolution,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_attention_math": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_trilinear": _trilinear,
    "_cdist_forward": _distances,
}
