"""Operators whose kernels trust what they are given: torch reads past a tensor's end where it is wrong.

Each is called through a check of the values that its kernel would use as places in memory. On tensors without
data (the meta device, traces) there is nothing to check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from spliteasy.errors import PortableError

Call = Callable[..., Any]


def guarded(name: str, call: Call) -> Call:
    """The operator with its check, or the operator itself where none is needed."""
    return _CHECKS[name](call) if name in _CHECKS else call


def _embedding_bag(call: Call) -> Call:
    def checked(weight: Tensor, indices: Tensor, offsets: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not _without_data(weight, indices, offsets):
            rising = bool((offsets.diff() >= 0).all())
            if not rising or (offsets.numel() and int(offsets[-1]) > indices.numel()) or (offsets < 0).any():
                raise PortableError("embedding_bag is called with offsets that are not places in its indices")
        return call(weight, indices, offsets, *args, **kwargs)

    return checked


def _as_strided(call: Call) -> Call:
    """Strides walk through the memory of the tensor alone, never through what lies before and behind it."""

    def checked(
        given: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
    ) -> Any:
        own = given.clone(memory_format=torch.preserve_format)
        return call(own, size, stride, storage_offset)

    return checked


def _fractional_pool(call: Call) -> Call:
    def checked(given: Tensor, kernel: Any, output: Any, samples: Tensor) -> Any:
        if not _without_data(samples) and not bool(((samples >= 0) & (samples < 1)).all()):
            raise PortableError("fractional pooling is called with samples outside 0 to 1")
        return call(given, kernel, output, samples)

    return checked


def _imag(call: Call) -> Call:
    """The imaginary part of a conjugate is only marked as negative, and a mark would not cross a cut."""

    def checked(given: Tensor) -> Any:
        return call(given).resolve_neg()

    return checked


def _istft(call: Call) -> Call:
    """The operator asks whether its windows overlap, which tensors without data can't answer."""

    def checked(
        spectrum: Tensor,
        n_fft: int,
        hop_length: int | None = None,
        win_length: int | None = None,
        window: Tensor | None = None,
        center: bool = True,
        normalized: bool = False,
        onesided: bool | None = None,
        length: int | None = None,
        return_complex: bool = False,
    ) -> Any:
        if not _without_data(spectrum):
            shape = (n_fft, hop_length, win_length, window, center, normalized, onesided, length)
            return call(spectrum, *shape, return_complex)
        hop = n_fft // 4 if hop_length is None else hop_length
        samples = n_fft * (not center) + hop * (spectrum.shape[-1] - 1) + (n_fft % 2) * center
        size = samples if length is None else length
        sound = spectrum if return_complex else torch.view_as_real(spectrum).sum(-1)
        return sound.sum((-2, -1))[..., None].expand(*spectrum.shape[:-2], size).clone()

    return checked


def _ctc_loss(call: Call) -> Call:
    def checked(
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        blank: int = 0,
        reduction: int = 1,
        zero_infinity: bool = False,
    ) -> Any:
        batched = log_probs.dim() == 3
        if _without_data(log_probs, targets, input_lengths, target_lengths):
            # the kernel's own shapes follow from the lengths, which are not known: its result's does not
            return log_probs.sum((0, 2)) if reduction == 0 and batched else log_probs.sum()
        _check_lengths(log_probs, targets, input_lengths, target_lengths, batched)
        return call(log_probs, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)

    return checked


def _check_lengths(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, batched: bool
) -> None:
    steps, classes = log_probs.shape[0], log_probs.shape[-1]
    samples = log_probs.shape[1] if batched else 1
    longest = targets.shape[-1] if targets.dim() == 2 or not batched else targets.numel()
    for lengths, most, what in ((input_lengths, steps, "input"), (target_lengths, longest, "target")):
        if lengths.numel() != samples or not _within(lengths, 0, most):
            raise PortableError(f"ctc_loss is called with {what} lengths outside 0 to {most}")
    if targets.dim() == 1 and int(target_lengths.sum()) > targets.numel():
        raise PortableError("ctc_loss is called with target lengths that add up to more than the targets")
    if targets.dim() == 2:  # what lies behind a target's length is padding, which nobody reads
        places = torch.arange(longest, device=targets.device)
        targets = targets[places < target_lengths.to(targets.device).reshape(-1, 1)]
    if not _within(targets, 0, classes - 1):
        raise PortableError(f"ctc_loss is called with targets outside 0 to {classes - 1}")


def _within(values: Tensor, least: int, most: int) -> bool:
    return bool(((values >= least) & (values <= most)).all())


_CHECKS: dict[str, Callable[[Call], Call]] = {
    "aten.embedding_bag.padding_idx": _embedding_bag,
    "aten.ctc_loss.Tensor": _ctc_loss,
    "aten.as_strided.default": _as_strided,
    "aten.fractional_max_pool2d.default": _fractional_pool,
    "aten.fractional_max_pool3d.default": _fractional_pool,
    "aten.imag.default": _imag,
    "aten.istft.default": _istft,
}


def _without_data(*tensors: Tensor) -> bool:
    return any(t.is_meta or is_fake(t) for t in tensors)
