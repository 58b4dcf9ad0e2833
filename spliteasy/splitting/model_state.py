"""Run a user's model and put it back: tensors, gradients, attributes, modes and generators of its own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Scalar = int | float
_CONTAINERS = (list, dict, set, deque)


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
        self._gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in (_tensors(model) if tensors else ())]
        self._undo = [
            undo
            for _, _, values in self._modules
            for value in values.values()
            if (undo := _undo_of(value)) is not None
        ]

    def restore(self) -> None:
        """Put everything back."""
        self.restore_tensors()
        for _, module, values in self._modules:
            module.__dict__.clear()
            module.__dict__.update(values)
        for undo in self._undo:
            undo()

    @torch.no_grad()
    def restore_tensors(self) -> None:
        """Put buffers and gradients back, and leave the other attributes as the forward left them."""
        for module, buffers in self._buffers:
            module._buffers.clear()
            module._buffers.update(buffers)
        for tensor, before in self._tensors:
            if not torch.equal(tensor, before):
                tensor.copy_(before)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def counters(self) -> list[tuple[str, nn.Module, str, Scalar, Scalar]]:
        """The numbers that changed: module path, module, attribute, value before and value now."""
        found = []
        for path, module, values in self._modules:
            for name, now in module.__dict__.items():
                before = values.get(name)
                if name != "training" and _is_number(before) and _is_number(now) and before != now:
                    found.append((path, module, name, before, now))
        return found  # type: ignore[return-value]

    def changed(self) -> list[tuple[str, str]]:
        """Module path and name of every attribute that the forward set anew."""
        return [
            (path, name)
            for path, module, values in self._modules
            for name, now in module.__dict__.items()
            if values.get(name) is not now and not (name.startswith("_") and name in nn.Module().__dict__)
        ]


@contextmanager
def left_as_it_was(model: nn.Module, *, tensors: bool = True) -> Iterator[ModelState]:
    """Whatever runs within, the model is afterwards what it was before. `tensors`: as of `ModelState`."""
    state = ModelState(model, tensors=tensors)
    try:
        yield state
    finally:
        state.restore()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes; each once."""
    attributes = [value for module in model.modules() for value in vars(module).values()]
    found = [*model.parameters(), *model.buffers(), *(v for v in attributes if isinstance(v, Tensor))]
    return list({id(tensor): tensor for tensor in found}.values())


def _undo_of(value: Any) -> Callable[[], None] | None:
    """What puts a container or generator back, in place: others may hold the same object."""
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
