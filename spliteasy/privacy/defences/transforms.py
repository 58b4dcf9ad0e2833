"""Transforms of what crosses the cuts: shuffled, clipped and noisy activations, noisy gradients.

Noise is a pure function of (the device's key, purpose, step, the clean tensor): a value that is sent again
or computed again gets the same noise, and another value of the same step other noise. Otherwise anybody who
makes a device take a step twice would subtract the noise out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import Value
from spliteasy.graph.segment import Segment
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.defences.marvell import noisy, positives
from spliteasy.privacy.defences.nopeek import penalty_gradient
from spliteasy.privacy.defences.rows import is_batch_first, per_sample
from spliteasy.privacy.defences.shuffle import drawn_order, restored, shuffled, tokens_of
from spliteasy.privacy.numbers import fill
from spliteasy.runtime.randomness import Key
from spliteasy.training.digest import strong_digest

Purpose = Literal["activations", "gradients", "evaluation", "prediction"]

TINY = 1e-12
"""A norm that stands for smaller ones where something is divided by it."""


class CutTransforms:
    """The transforms that a job's `[privacy]` asks for, with one device's noise."""

    def __init__(self, settings: PrivacySpec, key: Key, *, head: Segment, tail: Segment | None) -> None:
        """`key`: the device's for the job. Raises JobError where the transforms don't fit these segments."""
        check_transforms(settings, head, tail)
        self._clip = settings.clip_activations
        self._noise = settings.noise_activations
        self._gradient_noise = settings.gradient_noise
        self._marvell = settings.marvell
        self._nopeek = settings.nopeek
        self._shuffle = settings.shuffle_tokens
        self._key = key.at("noise")

    def order(self, values: Sequence[Value], *, purpose: Purpose, step: int) -> Tensor | None:
        """Return the order of each sample's tokens in which the head's values cross; None: their own."""
        if not self._shuffle:
            return None
        (clean,) = (v.detach() for v in values if isinstance(v, Tensor))
        key = self._key.at("order", purpose, step, strong_digest(clean))
        return drawn_order(key, clean.shape[0], clean.shape[1])

    def activations(
        self, values: Sequence[Value], *, purpose: Purpose, step: int, order: Tensor | None = None
    ) -> tuple[Value, ...]:
        """Return the head's values as they cross the cut. A backward from them passes through the clipping
        and the order."""
        return tuple(
            self._activation(v if order is None else shuffled(v, order), purpose, step)
            if isinstance(v, Tensor) and v.is_floating_point()
            else v
            for v in values
        )

    @staticmethod
    def in_order(values: Sequence[Value], order: Tensor | None) -> tuple[Value, ...]:
        """Return the body's outputs with tokens where they were before `order`."""
        if order is None:
            return tuple(values)
        return tuple(restored(v, order) if isinstance(v, Tensor) else v for v in values)

    def gradients(
        self,
        gradients: Sequence[Tensor | None],
        targets: Sequence[Tensor] = (),
        *,
        step: int,
        order: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the tail's inputs, for samples of these targets, as they cross the cut."""
        if order is not None:
            gradients = [g if g is None else shuffled(g, order) for g in gradients]
        if self._marvell is not None:
            return self._two_classes(gradients, targets[0], self._marvell, step)
        if self._gradient_noise is None:
            return tuple(gradients)
        return tuple(None if g is None else self._gradient(g, step) for g in gradients)

    def returned(
        self,
        inputs: Sequence[Value],
        sent: Sequence[Value],
        gradients: Sequence[Tensor | None],
        *,
        share: float,
    ) -> tuple[Tensor | None, ...]:
        """Return what the head's backward gets for the gradients that came: NoPeek's term is added to them.

        `sent`: what crossed the first cut for `inputs`, which count for `share` of the batch.
        """
        if self._nopeek is None or not share:
            return tuple(gradients)
        seen = [x for x in inputs if isinstance(x, Tensor)]
        return tuple(
            g + penalty_gradient(self._nopeek * share, seen, v)
            if g is not None and isinstance(v, Tensor)
            else g
            for g, v in zip(gradients, sent, strict=True)
        )

    def _activation(self, value: Tensor, purpose: Purpose, step: int) -> Tensor:
        if self._clip is None:
            return value
        sent = clipped(value, self._clip)
        if self._noise:
            sent = sent + self._normal(value, purpose, step) * (self._noise * self._clip)
        return sent

    @torch.no_grad()
    def _gradient(self, gradient: Tensor, step: int) -> Tensor:
        if self._gradient_noise == "max_norm":
            return self._max_norm(gradient, step)
        squares = _squares(gradient)
        largest = squares.max() if squares.numel() else squares.sum()
        share = float(self._gradient_noise or 0) * (largest / max(1, gradient[0].numel())).sqrt()
        return gradient + self._normal(gradient, "gradients", step) * share.to(gradient.dtype)

    def _max_norm(self, gradient: Tensor, step: int) -> Tensor:
        squares = _squares(gradient)
        largest = squares.max() if squares.numel() else squares.sum()
        spread = torch.where(squares > 0, largest / squares - 1, 0).clamp_min(0).sqrt()
        draws = self._normal(gradient, "gradients", step, shape=squares.shape)
        factors = per_sample(1 + spread * draws.double(), gradient)
        return (gradient.double() * factors).to(gradient.dtype)

    @torch.no_grad()
    def _two_classes(
        self, gradients: Sequence[Tensor | None], targets: Tensor, power: float, step: int
    ) -> tuple[Tensor | None, ...]:
        """All gradients of a sample are one row; where one class is alone, rows have the same lengths."""
        present = [g for g in gradients if g is not None]
        if not present:
            return tuple(gradients)
        rows = torch.cat([g.flatten(1).double() for g in present], dim=1)
        changed = noisy(rows, positives(targets), power, self._normal(rows, "gradients", step))
        if changed is None:
            changed = self._max_norm(rows, step)
        parts = iter(torch.split(changed, [g[0].numel() for g in present], dim=1))
        return tuple(None if g is None else next(parts).reshape(g.shape).to(g.dtype) for g in gradients)

    def _normal(
        self, clean: Tensor, purpose: Purpose, step: int, *, shape: torch.Size | None = None
    ) -> Tensor:
        """Standard normal numbers that nobody else knows, for this clean tensor at this step."""
        noise = torch.empty(clean.shape if shape is None else shape, dtype=clean.dtype)
        fill(noise, "normal", (0.0, 1.0), self._key.at(purpose, step, strong_digest(clean)))
        return noise


def _squares(gradient: Tensor) -> Tensor:
    """Return the squared norm of each sample's gradient."""
    return gradient.flatten(1).double().square().sum(1)


def clipped(value: Tensor, most: float) -> Tensor:
    """Each sample of `value` scaled down to a 2-norm of `most`, where it has more."""
    norms = value.flatten(1).norm(dim=1).clamp_min(TINY)
    return value * per_sample((most / norms).clamp(max=1.0), value)


def check_transforms(settings: PrivacySpec, head: Segment, tail: Segment | None) -> None:
    """Refuse cuts at which the transforms can't be applied sample by sample. Raises JobError."""
    if settings.clip_activations is not None:
        for graph in (head.program.document.train, head.program.document.eval):
            for spec in graph.outputs[: graph.wire]:
                if not spec.is_int and not (spec.torch_dtype.is_floating_point and is_batch_first(spec)):
                    raise JobError(
                        f"[privacy] clip_activations: {spec.name} crosses the first cut, and is no floating "
                        "tensor with the batch first, so that it can't be clipped sample by sample",
                        hint="cut where no such tensor crosses, or leave clip_activations out",
                    )
    if settings.shuffle_tokens:
        tokens_of(head)
    if settings.nopeek is not None:
        check_nopeek(head)
    if not settings.noisy_gradients:
        return
    name = "marvell" if settings.gradient_noise is None else "gradient_noise"
    if tail is None:
        raise JobError(
            f"[privacy] {name} is for gradients that a device sends, and with one cut it sends none",
            hint=f"name two cuts, or leave {name} out",
        )
    graph = head.program.document.train
    kept = len(graph.outputs) - graph.wire
    inputs = tail.program.document.train.inputs
    for spec in inputs[: len(inputs) - kept]:
        if spec.needs_grad and not is_batch_first(spec):
            raise JobError(
                f"[privacy] {name}: {spec.name} crosses the second cut without the batch as its "
                "first dimension, so that its gradient has no rows of samples",
                hint=f"cut elsewhere, or leave {name} out",
            )


def check_nopeek(head: Segment) -> None:
    """Raise JobError where inputs have no distances, or nothing of the head learns from them."""
    graph = head.program.document.train
    floating = [spec for spec in graph.inputs if not spec.is_int and spec.torch_dtype.is_floating_point]
    if not floating or not all(is_batch_first(spec) for spec in floating):
        raise JobError(
            "[privacy] nopeek compares inputs by their distance, and the head has no such input",
            hint="leave nopeek out",
        )
    for spec in graph.outputs[: graph.wire]:
        if spec.is_int or not is_batch_first(spec):
            raise JobError(
                f"[privacy] nopeek: {spec.name} crosses the first cut without the batch in front",
                hint="cut elsewhere, or leave nopeek out",
            )
