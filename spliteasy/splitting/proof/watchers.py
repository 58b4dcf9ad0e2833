"""Watch a user's model run by plain PyTorch: which layer does what no trace can see."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from spliteasy.splitting.proof.trial import tensors_of

PYTHON, NUMPY = "Python's `random`", "`numpy.random`"


@dataclass(slots=True)
class Seen:
    """A record of what one forward did. A path is that of the innermost module that ran, and empty for the
    model itself."""

    draws: dict[str, str] = field(default_factory=dict)
    """Path → the generator it draws from, which is not torch's."""
    functions: list[tuple[str, str]] = field(default_factory=list)
    """Path and class of every `torch.autograd.Function` of the user's own that the backward would run."""
    hooks: list[str] = field(default_factory=list)
    """Paths of the modules that hung a hook on a tensor."""
    outputs: list[tuple[str, list[Tensor]]] = field(default_factory=list)
    """The tensors that every module call returned, in order of completion; only where asked for."""


@contextmanager
def watched(model: nn.Module, *, outputs: bool = False) -> Iterator[Seen]:
    """Watch the model in this block. `outputs` keeps copies of what every module returns."""
    seen = Seen()
    stack: list[str] = [""]
    state = _generators()
    nodes: dict[int, Any] = {}

    def look() -> None:
        nonlocal state
        now = _generators()
        for name in (PYTHON, NUMPY):
            if now[name] != state[name]:
                seen.draws.setdefault(stack[-1], name)
        state = now

    def enter(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any) -> None:
            look()  # what was done so far, the inputs included, is the work of the module that calls
            seen.functions.extend((stack[-1], name) for name in _own_functions(tensors_of(inputs), nodes))
            stack.append(path)

        return hook

    def leave(_module: nn.Module, _inputs: Any, result: Any) -> None:
        look()
        path = stack.pop() if len(stack) > 1 else ""
        made = tensors_of(result)
        seen.functions.extend((path, name) for name in _own_functions(made, nodes))
        if outputs:
            seen.outputs.append((path, [tensor.detach().clone() for tensor in made]))

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        with _noting_hooks(seen, stack):
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def _generators() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    assert not isinstance(keys, str), "the keys are an array"
    return {PYTHON: random.getstate(), NUMPY: (name, keys.tobytes(), *rest)}


def _own_functions(tensors: Sequence[Tensor], known: dict[int, Any]) -> Iterator[str]:
    """The classes of the user's own autograd functions behind the tensors. `known`: the nodes seen before."""
    todo: list[Any] = [tensor.grad_fn for tensor in tensors]
    while todo:
        node = todo.pop()
        if node is None or id(node) in known:
            continue
        known[id(node)] = node
        todo.extend(following for following, _ in node.next_functions)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            function: type = node._forward_cls  # type: ignore[attr-defined]
            if not function.__module__.startswith("torch."):
                yield function.__qualname__


@contextmanager
def _noting_hooks(seen: Seen, stack: list[str]) -> Iterator[None]:
    """Note every hook that the forward hangs on a tensor."""
    names = ("register_hook", "register_post_accumulate_grad_hook")
    originals = {name: getattr(Tensor, name) for name in names}

    def noting(original: Callable[..., Any]) -> Callable[..., Any]:
        def register(tensor: Tensor, hook: Callable[..., Any]) -> Any:
            seen.hooks.append(stack[-1])
            return original(tensor, hook)

        return register

    for name, original in originals.items():
        setattr(Tensor, name, noting(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(Tensor, name, original)


def standing_hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Hooks on gradients that hang on the model: where (empty for the model itself), and of what kind."""
    for path, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            yield f"parameter `{path}`", "a hook on its gradient"
    for path, module in model.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            yield f"layer `{path}`" if path else "", "a backward hook"
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        yield "every module", "a backward hook"
