"""Call a model as its library's users do: inputs by keyword, results out of a library's own output.

Everything else here calls a model with tensors in order and takes the tensors that come back. A model that is
called by keywords, or gives a `ModelOutput` as those of `transformers` do, gets a forward of that form for
as long as it is adapted. Its modules, their names and its tensors stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_AUTOCAST = "_spliteasy_autocast"
"""An attribute of the class of a model that was adapted to run under autocast."""


@contextmanager
def adapted(model: nn.Module, names: Sequence[str] | None) -> Iterator[None]:
    """Let `model(*tensors)` pass them by these keywords (None: in their order) and give tensors, while it is
    entered."""
    undo = adapt(model, names)
    try:
        yield
    finally:
        undo()


def adapt(model: nn.Module, names: Sequence[str] | None, *, autocast: bool = False) -> Callable[[], None]:
    """Adapt the model as `adapted` does, until the function that is returned is called.

    `autocast`: it runs under autocast to bfloat16, and gives float32 all the same.
    """
    kind, caching = type(model), _caching(model)
    if names is None and not autocast and not _gives_outputs_of_its_own(model):
        return lambda: None
    for config in caching:
        config.use_cache = False
    model.__class__ = _adapted_class(kind, names, autocast)

    def undo() -> None:
        model.__class__ = kind
        for config in caching:
            config.use_cache = True

    return undo


def results_of(output: Any) -> Any:
    """The logits of a library's output where it has some, else its tensors in order; others as they are.

    What it holds beside, such as a cache, is for the library's own next call.
    """
    if not (isinstance(output, Mapping) and hasattr(output, "to_tuple")):
        return output
    if isinstance(output.get("logits"), Tensor):
        return output["logits"]
    return tuple(value for value in output.values() if isinstance(value, Tensor))


def is_autocast(model: nn.Module) -> bool:
    """Return whether the model was adapted to run under autocast."""
    return bool(getattr(type(model), _AUTOCAST, False))


def _adapted_class(kind: type[nn.Module], names: Sequence[str] | None, autocast: bool) -> type[nn.Module]:
    """The model's class with another forward: copies of the model have it too, with their own modules."""
    plain: Callable[..., Any] = kind.forward

    @wraps(plain)
    def forward(self: nn.Module, *tensors: Tensor) -> Any:
        if not autocast or torch.compiler.is_exporting():  # a trace has the casts put in
            return called(self, *tensors)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = called(self, *tensors)
        return tree_map_only(Tensor, _widened, outputs)

    def called(self: nn.Module, *tensors: Tensor) -> Any:
        if names is None:
            return results_of(plain(self, *tensors))
        return results_of(plain(self, **dict(zip(names, tensors, strict=True))))

    if names is not None:
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        forward.__signature__ = inspect.Signature([own, *parameters])  # type: ignore[attr-defined]
    members: dict[str, Any] = {"forward": forward, "__module__": kind.__module__, "__doc__": kind.__doc__}
    if autocast:
        members[_AUTOCAST] = True
    return type(kind.__name__, (kind,), members)


def _gives_outputs_of_its_own(model: nn.Module) -> bool:
    """Return whether it is a model of `transformers`, which return a `ModelOutput`, or has one within."""
    return any(hasattr(getattr(module, "config", None), "return_dict") for module in model.modules())


def _caching(model: nn.Module) -> list[Any]:
    """The configurations of the model's modules that ask for a cache, which training has no use for."""
    configs = {
        id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None
    }
    return [config for config in configs.values() if getattr(config, "use_cache", None) is True]


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
