"""Operators whose values name places in memory, and what each may be: looked at before an accelerator does.

On a CPU a kernel raises an error for a place that is not there. On an accelerator it stops for good, and with
it everything that this process has there. So does a kernel that is given a probability beyond 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spliteasy.errors import DataError

Check = Callable[..., None]
_Arguments = Mapping[str, Any]
"""The arguments of a call by their names in the operator's schema, defaults included."""

_Rule = Callable[[str, _Arguments], None]


@cache
def check_of(name: str) -> Check | None:
    """Return the check that takes the arguments of the operator `aten.base.overload`; None where none is
    needed. It raises DataError."""
    rule = _RULES.get(name.split(".")[1]) if name.startswith("aten.") else None
    if rule is None:
        return None
    _, base, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, base), overload)._schema
    defaults = {each.name: each.default_value for each in schema.arguments if each.has_default_value()}
    names = [each.name for each in schema.arguments]

    def check(*args: Any, **kwargs: Any) -> None:
        rule(base, {**defaults, **dict(zip(names, args, strict=False)), **kwargs})

    return check


def checked_names() -> frozenset[str]:
    """Return the operators with a check, without their overloads."""
    return frozenset(_RULES)


def _within(base: str, values: Tensor, least: float, most: float) -> None:
    if values.numel() and not bool(((values >= least) & (values <= most)).all()):
        raise DataError(f"a value that {base} reads as a place or a share is outside {least:g} to {most:g}")


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.dim() else 1


def _rows(base: str, given: _Arguments) -> None:
    _within(base, given["indices"], 0, given["weight"].shape[0] - 1)


def _along(base: str, given: _Arguments) -> None:
    _within(base, given["index"], 0, _size(given["self"], given["dim"]) - 1)


def _along_from_both_ends(base: str, given: _Arguments) -> None:
    size = _size(given["self"], given["dim"])
    _within(base, given["index"], -size, size - 1)


def _along_dim(base: str, given: _Arguments) -> None:
    tensor, dim = given["self"], given["dim"]
    _within(base, given["indices"], 0, (tensor.numel() if dim is None else _size(tensor, dim)) - 1)


def _anywhere(base: str, given: _Arguments) -> None:
    size = given["self"].numel()
    _within(base, given["index"], -size, size - 1)


def _by_dimensions(base: str, given: _Arguments) -> None:
    dim, shape = 0, given["self"].shape
    for index in given["indices"]:
        if index is None or dim >= len(shape):
            dim += 1
        elif index.dtype in (torch.bool, torch.uint8):
            dim += index.dim()
        else:
            _within(base, index, -shape[dim], shape[dim] - 1)
            dim += 1


def _classes(base: str, given: _Arguments) -> None:
    scores, target = given["self"], given["target"]
    if target.is_floating_point():
        return
    classes = scores.shape[min(1, scores.dim() - 1)]
    _within(base, target[target != given["ignore_index"]], 0, classes - 1)


def _margin_classes(least: int) -> _Rule:
    def rule(base: str, given: _Arguments) -> None:
        _within(base, given["target"], least, given["self"].shape[-1] - 1)

    return rule


def _one_of(base: str, given: _Arguments) -> None:
    count = given["num_classes"]
    _within(base, given["self"], 0, count - 1 if count >= 0 else math.inf)


def _unpooled(base: str, given: _Arguments) -> None:
    size: Sequence[int] = given["output_size"]
    _within(base, given["indices"], 0, math.prod(size) - 1)


def _shares(name: str) -> _Rule:
    def rule(base: str, given: _Arguments) -> None:
        shares = given.get(name)
        if isinstance(shares, Tensor):
            _within(base, shares, 0, 1)

    return rule


def _bernoulli(base: str, given: _Arguments) -> None:
    shares = given.get("p", given["self"])
    if isinstance(shares, Tensor):
        _within(base, shares, 0, 1)


def _not_negative(base: str, given: _Arguments) -> None:
    _within(base, given["self"], 0, math.inf)


def _drawn_from(base: str, given: _Arguments) -> None:
    weights = given["self"]
    _within(base, weights, 0, torch.finfo(weights.dtype).max)
    if not bool((weights.sum(-1) > 0).all()):
        raise DataError(f"{base} is to draw from weights that are all 0")


def _masked(base: str, given: _Arguments) -> None:
    if int(given["mask"].expand_as(given["self"]).sum()) > given["source"].numel():
        raise DataError(f"{base} has fewer values than its mask has places")


def _in_place_too(rules: Mapping[str, _Rule]) -> dict[str, _Rule]:
    return {**rules, **{f"{base}_": rule for base, rule in rules.items()}}


_RULES: dict[str, _Rule] = {
    **_in_place_too(
        {
            **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _along),
            **dict.fromkeys(("index_add", "index_copy", "index_reduce"), _along),
            "index_fill": _along_from_both_ends,
            "index_put": _by_dimensions,
            "put": _anywhere,
            "masked_scatter": _masked,
            "bernoulli": _bernoulli,
        }
    ),
    **dict.fromkeys(("embedding", "embedding_bag"), _rows),
    **dict.fromkeys(("index_select", "gather"), _along),
    **dict.fromkeys(("index", "_unsafe_index", "_unsafe_index_put"), _by_dimensions),
    **dict.fromkeys(("nll_loss", "nll_loss_nd", "nll_loss2d", "cross_entropy_loss"), _classes),
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpooled),
    **dict.fromkeys(("quantile", "nanquantile"), _shares("q")),
    "take": _anywhere,
    "take_along_dim": _along_dim,
    "multi_margin_loss": _margin_classes(0),
    "multilabel_margin_loss": _margin_classes(-1),
    "one_hot": _one_of,
    "multinomial": _drawn_from,
    "poisson": _not_negative,
    "binary_cross_entropy": _shares("self"),
}
"""By the operator's name without its overload, for all overloads."""
