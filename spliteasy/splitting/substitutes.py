"""Replace, while a model is traced, library code that looks at values or that the tracer can't follow.

None of it changes what a model computes. Checks that only raise are taken as passed, a checkpointed region
is run once (its recomputation gives the same numbers), and `nn.Transformer` decides whether a mask is the
causal one as it does outside a trace, on real values. A buffer that a layer assigns is written into, which
torch.export sees of the outermost module alone.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import CodeType
from typing import Any, cast
from unittest import mock

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F
from torch.nn.modules import transformer

from spliteasy.errors import JobError
from spliteasy.graph.operators import operator_of
from spliteasy.splitting.proof.model_state import left_as_it_was

_PASSES: dict[CodeType, bool] = {F.gaussian_nll_loss.__code__: False}
"""Code that asks whether a tensor is true only in order to raise, and the answer that goes on."""

_CAUSAL = transformer._detect_is_causal_mask.__code__
_TRUTH, _CTC = Tensor.__bool__, torch.ctc_loss


@contextmanager
def substituted(model: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Trace within it. The model, its buffers and the state of random generators stay as they are."""
    causal = iter(_causal_masks(model, inputs))

    def answer(asking: CodeType, value: Tensor) -> bool:
        if asking is _CAUSAL:
            return next(causal, False)
        return _PASSES[asking] if asking in _PASSES else _TRUTH(value)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Distribution, "_validate_args", False))
        checkpoint = torch.utils.checkpoint
        stack.enter_context(mock.patch.object(checkpoint, "CheckpointFunction", _RunOnce))
        stack.enter_context(
            mock.patch.object(checkpoint, "_checkpoint_without_reentrant_generator", _nothing_around)
        )
        stack.enter_context(mock.patch.object(torch, "ctc_loss", _ctc))
        stack.enter_context(mock.patch.object(torch.autocast, "__enter__", _enter_autocast))
        stack.enter_context(mock.patch.object(torch.autocast, "__exit__", _nothing))
        stack.enter_context(_asked(answer))
        stack.enter_context(_set_buffers_written(model))
        yield


class _RunOnce:
    """A substitute for the checkpoint that runs its region under no_grad, and again in the backward pass."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _enter_autocast(region: torch.autocast) -> torch.autocast:
    """A region that casts nothing is a plain one. Recorded, it would lose the `no_grad` within it."""
    if region._enabled and region.device == "cpu":
        raise JobError(
            "a region under torch.autocast casts to another precision",
            hint="cast by hand where it matters: x.to(torch.bfloat16), and back",
        )
    return region


def _nothing(*_: Any) -> None:
    pass


def _nothing_around(*_: Any, **__: Any) -> Iterator[None]:
    """A substitute for the hooks that a checkpoint without reentry sets around its region."""
    yield


@torch.library.custom_op("spliteasy::ctc_loss", mutates_args=())
def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: int = 1,
    zero_infinity: bool = False,
) -> Tensor:
    """CTC as one operator: torch's own reads the lengths as numbers as soon as it is traced."""
    made = operator_of("aten.ctc_loss.Tensor")(
        log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity
    )
    return cast(Tensor, made)


_CTC_SIGNATURE = inspect.signature(_ctc_loss._init_fn)
_ctc_loss.register_fake(operator_of("aten.ctc_loss.Tensor"))
STANDS_FOR: dict[Any, Any] = {torch.ops.spliteasy.ctc_loss.default: torch.ops.aten.ctc_loss.Tensor}
"""Operators of a trace that stand for others, which take the same arguments."""


def _ctc(*args: Any, **kwargs: Any) -> Tensor:
    """`torch.ctc_loss`: one operator if the lengths are tensors. As lists they fix the batch size anyway."""
    given = _CTC_SIGNATURE.bind(*args, **kwargs)
    given.apply_defaults()
    if all(isinstance(value, Tensor) for value in given.args[:4]):
        return cast(Tensor, torch.ops.spliteasy.ctc_loss(*given.args))
    return _CTC(*args, **kwargs)


@contextmanager
def _set_buffers_written(model: nn.Module) -> Iterator[None]:
    """Make `self.mean = 0.9 * self.mean + ...` in a layer write the value into the buffer too, while it is
    entered.

    The write comes at the end of the model's forward: what was read of the buffer before stays as it was.
    """
    layers = [layer for layer in model.modules() if layer is not model]
    before: list[dict[str, Tensor | None]] = []

    def note(*_: Any) -> None:
        before[:] = [dict(layer._buffers) for layer in layers]

    @torch.no_grad()
    def write(*_: Any) -> None:
        for layer, buffers in zip(layers, before, strict=True):
            for name, old in buffers.items():
                new = layer._buffers.get(name)
                if old is not None and new is not None and new is not old and _shape(new) == _shape(old):
                    old.copy_(new)

    with model.register_forward_pre_hook(note, prepend=True), model.register_forward_hook(write):
        yield


def _shape(value: Tensor) -> list[str]:
    """Describe the shape without a guard on a free size, which a comparison of numbers would leave."""
    return [str(size) for size in value.shape]


@contextmanager
def _asked(answer: Callable[[CodeType, Tensor], bool]) -> Iterator[None]:
    """Let `answer` say whether a tensor is true while it is entered; it is given the code that asks."""

    def truth(value: Tensor) -> bool:
        return answer(sys._getframe(1).f_code, value)

    with mock.patch.object(Tensor, "__bool__", truth):
        yield


def _causal_masks(model: nn.Module, inputs: Sequence[Tensor]) -> list[bool]:
    """Return what `nn.TransformerEncoder` and `nn.TransformerDecoder` find about their masks, call
    by call."""
    stacks = (nn.TransformerEncoder, nn.TransformerDecoder)
    if not any(isinstance(module, stacks) for module in model.modules()):
        return []
    found: list[bool] = []

    def note(asking: CodeType, value: Tensor) -> bool:
        truth = _TRUTH(value)
        if asking is _CAUSAL:
            found.append(truth)
        return truth

    with torch.no_grad(), left_as_it_was(model), _asked(note):
        model(*(value.detach().clone() for value in inputs))
    return found
