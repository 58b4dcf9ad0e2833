"""Run a user's model and put it back: tensors, gradients, attributes, modes and generators of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Scalar = int | float
_CONTAINERS = (list, dict, set, deque)
_INTERNAL = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


@dataclass(frozen=True, slots=True)
class Counter:
    """A number that a forward changed. `name`: as within the module at `path`, `calls` or `state.calls`."""

    path: str
    name: str
    before: Scalar
    now: Scalar
    put: Callable[[Scalar], None]


@dataclass(frozen=True, slots=True)
class _Holder:
    """A holder of numbers by name, with a copy: a module, its class, or a dictionary or object
    that it has."""

    path: str
    prefix: str
    values: Mapping[str, Any]
    before: Mapping[str, Any]
    put: Callable[[str, Any], None]

    def changed(self) -> list[tuple[str, Scalar, Scalar]]:
        return [
            (name, before, self.values[name])
            for name, before in self.before.items()
            if isinstance(name, str) and name not in _INTERNAL and _is_number(before)
            if _is_number(self.values.get(name)) and self.values[name] != before
        ]


class ModelState:
    """All that a forward may change on a model, as it was when this was made."""

    def __init__(self, model: nn.Module, *, tensors: bool = True) -> None:
        """`tensors`: keep copies of what parameters and buffers hold, for where real data flows."""
        self._modules = [
            (path, module, dict(module.__dict__))
            for path, module in model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)  # its attributes are no Python objects
        ]
        self._buffers = [(module, dict(module._buffers)) for _, module, _ in self._modules]
        self._parameters = list(model.named_parameters())
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in (_tensors(model) if tensors else ())]
        self._undo = [
            undo
            for _, _, values in self._modules
            for value in values.values()
            if (undo := _undo_of(value)) is not None
        ]
        self._holders = [
            holder for path, module, values in self._modules for holder in _holders(path, module, values)
        ]

    def restore(self) -> list[str]:
        """Put everything back; returns as `restore_tensors` does."""
        changed = self.restore_tensors()
        for _, module, values in self._modules:
            module.__dict__.clear()
            module.__dict__.update(values)
        for undo in self._undo:
            undo()
        for holder in self._holders:
            for name, before, _ in holder.changed():
                holder.put(name, before)
        return changed

    @torch.no_grad()
    def restore_tensors(self) -> list[str]:
        """Put tensors and gradients back, and leave the other attributes as the forward left them.

        Returns the names of the parameters that held something else.
        """
        for module, buffers in self._buffers:
            module._buffers.clear()
            module._buffers.update(buffers)
        changed = []
        for tensor, before in self._tensors:
            if not same_numbers(tensor, before):
                tensor.copy_(before)
                changed += [name for name, parameter in self._parameters if parameter is tensor]
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return changed

    def counters(self) -> list[Counter]:
        """The numbers that changed."""
        return [
            Counter(holder.path, holder.prefix + name, before, now, partial(holder.put, name))
            for holder in self._holders
            for name, before, now in holder.changed()
        ]

    def changed(self) -> list[tuple[str, str]]:
        """Module path and name of every attribute that the forward assigned."""
        return [
            (path, name)
            for path, module, values in self._modules
            for name, now in module.__dict__.items()
            if values.get(name) is not now and name not in _INTERNAL
        ]


@contextmanager
def left_as_it_was(model: nn.Module, *, tensors: bool = True) -> Iterator[ModelState]:
    """Whatever runs within, the model is afterwards what it was before. `tensors`: as of `ModelState`."""
    state = ModelState(model, tensors=tensors)
    try:
        yield state
    finally:
        state.restore()


def same_numbers(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two tensors hold the same, NaN included: memory that nobody initialised may hold any."""
    return torch.equal(ours, theirs) or bool(torch.equal(torch.nan_to_num(ours), torch.nan_to_num(theirs)))


def _holders(path: str, module: nn.Module, values: Mapping[str, Any]) -> Iterator[_Holder]:
    yield _Holder(path, "", vars(module), values, vars(module).__setitem__)
    kind = type(module)
    if not kind.__module__.startswith("torch."):
        yield _Holder(path, f"{kind.__name__}.", vars(kind), dict(vars(kind)), partial(setattr, kind))
    for name, value in values.items():
        inner = value if isinstance(value, dict) else _attributes(value)
        if name not in _INTERNAL and inner is not None:
            yield _Holder(path, f"{name}.", inner, dict(inner), inner.__setitem__)


def _attributes(value: Any) -> dict[str, Any] | None:
    """The attributes of a plain object of the user's own."""
    if isinstance(value, Tensor | nn.Module | ModuleType) or callable(value):
        return None
    return getattr(value, "__dict__", None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes; each once."""
    attributes = [value for module in model.modules() for value in vars(module).values()]
    found = [*model.parameters(), *model.buffers(), *(v for v in attributes if isinstance(v, Tensor))]
    return list({id(tensor): tensor for tensor in found}.values())


def _undo_of(value: Any) -> Callable[[], None] | None:
    """Return a function that puts a container or generator back in place, because others may hold the same
    object."""
    if isinstance(value, _CONTAINERS):
        return _refill(value)
    if isinstance(value, random.Random):
        state = value.getstate()
        return lambda: value.setstate(state)
    if isinstance(value, np.random.Generator):
        numpy_state = value.bit_generator.state
        return lambda: setattr(value.bit_generator, "state", numpy_state)
    if isinstance(value, np.random.RandomState):
        legacy = value.get_state()
        return lambda: value.set_state(legacy)
    if isinstance(value, torch.Generator):
        torch_state = value.get_state()

        def undo() -> None:
            value.set_state(torch_state)

        return undo
    return None


def _refill(container: Any) -> Callable[[], None]:
    kept = container.copy()

    def undo() -> None:
        container.clear()
        container.extend(kept) if isinstance(container, list | deque) else container.update(kept)

    return undo
