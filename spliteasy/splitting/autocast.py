"""The casts that `torch.autocast` makes, as operators of a trace.

A job with `precision = "bf16"` trains as the model does under `torch.autocast("cpu", torch.bfloat16)`. A
graph knows no autocast: the casts stand in it. Which arguments an operator casts, and to what, is asked of
torch: the operator runs once on tensors without data, under autocast and without, and a mode sees the copies
that are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spliteasy.errors import PortableError

LOW = torch.bfloat16
_aten = torch.ops.aten
_RECURRENT = ("aten.lstm", "aten.gru", "aten.rnn_")
"""Begin the names of operators that cast what goes from one step in time to the next within themselves."""
_MOVES = (_aten.clone.default, _aten._unsafe_view.default)
"""Operators within others whose result is their argument's numbers, in another place."""


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each cast of an argument: which argument, by its place, and to what."""

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.casts: list[tuple[int | None, torch.dtype]] = []
        self._places = {id(tensor): place for place, tensor in enumerate(arguments)}
        self._of: dict[int, set[int]] = {}
        for place, tensor in enumerate(arguments):
            self._of.setdefault(_memory(tensor), set()).add(place)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in _MOVES and isinstance(made, Tensor) and _memory(args[0]) in self._of:
            self._of.setdefault(_memory(made), self._of[_memory(args[0])])
        if func is _aten._to_copy.default and made.dtype != args[0].dtype:
            self.casts.append((self._place_of(args[0]), made.dtype))
        return made

    def _place_of(self, tensor: Tensor) -> int | None:
        if id(tensor) in self._places:
            return self._places[id(tensor)]
        places = self._of.get(_memory(tensor), set())
        return next(iter(places)) if len(places) == 1 else None


def casts_of(
    call: Callable[..., Any], name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[int, torch.dtype]:
    """Return to which dtype autocast casts the tensors among the arguments, by `id`.

    Raises `PortableError` where it casts something between them, which a graph of operators can't say.
    """
    tensors = list({id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}.values())
    if not any(tensor.is_floating_point() for tensor in tensors):
        return {}
    watch = _Watch(tensors)
    with _casting(), watch:
        call(*args, **kwargs)
    left = list(watch.casts)
    if not left:
        return {}
    for cast in _own_casts(call, tensors, args, kwargs):
        if cast in left:
            left.remove(cast)
    found: dict[int, torch.dtype] = {}
    for place, dtype in left:
        if place is None or name.startswith(_RECURRENT):
            raise PortableError(
                f"{name} casts values within it under autocast, which a graph can't do",
                hint='express it with matmul, linear or a convolution, or use precision = "fp32"',
            )
        found[id(tensors[place])] = dtype
    return found


@contextmanager
def _casting() -> Iterator[None]:
    """Turn autocast on. While a model is traced, `torch.autocast` itself is there for the user's code."""
    before = (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", LOW)
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cpu", before[0])
        torch.set_autocast_dtype("cpu", before[1])
        torch.set_autocast_cache_enabled(before[2])


def _own_casts(
    call: Callable[..., Any], tensors: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[tuple[int | None, torch.dtype]]:
    """The casts that the operator makes without autocast too; none where it takes no such arguments then."""
    watch = _Watch(tensors)
    with watch:
        try:
            call(*args, **kwargs)
        except RuntimeError:
            return []
    return watch.casts


def _memory(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
