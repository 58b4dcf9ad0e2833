"""Modes of torch that a trace can't see, replaced by equal ones that it sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.grad_mode import inference_mode


@contextmanager
def fused_attention(enabled: bool) -> Iterator[None]:
    """Allow or forbid torch's fused path of `nn.MultiheadAttention` and the layers around it."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def inference_mode_as_no_grad() -> Iterator[None]:
    """`torch.inference_mode` in this block does what `torch.no_grad` does, which a trace keeps.

    The two compute the same numbers and the same gradients; inference mode only forbids more.
    """
    enter, leave = inference_mode.__enter__, inference_mode.__exit__

    def enter_no_grad(self: Any) -> None:
        self._grad_before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(not self.mode)

    def leave_no_grad(self: Any, *_: Any) -> None:
        torch._C._set_grad_enabled(self._grad_before)

    inference_mode.__enter__, inference_mode.__exit__ = enter_no_grad, leave_no_grad  # type: ignore[method-assign]
    try:
        yield
    finally:
        inference_mode.__enter__, inference_mode.__exit__ = enter, leave  # type: ignore[method-assign]
