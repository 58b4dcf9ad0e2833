"""Check that the losses of micro-batches add up to the loss of their batch, for a loss that the
user wrote."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose, isfinite

import torch
from torch import Tensor

from spliteasy.errors import DataError, JobError
from spliteasy.job.micro_batches import split_batch
from spliteasy.job.spec import JobSpec
from spliteasy.training.losses import IGNORED_CLASS, LossFunction
from spliteasy.training.measures import Measure

Tensors = tuple[Tensor, ...]


def check_micro_batches(
    spec: JobSpec, measure: Measure, loss: LossFunction, outputs: Tensors, targets: Tensors
) -> None:
    """Refuse micro-batches whose losses do not add up to the loss of the batch. Raises JobError.

    Tried on random outputs with the example's targets, with targets of 0 and 1, and with ignored ones.
    """
    what = f"loss {spec.loss.function} with micro_batches = {spec.micro_batches}"
    if measure.opaque:
        raise JobError(
            f"{what}: the loss is a mean over labelled elements that can't be read from the targets alone",
            hint="set micro_batches = 1, or compute the labels of the loss from the targets only",
        )
    generator = torch.Generator().manual_seed(spec.seed)
    random = tuple(torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs)
    for tried in _tried_targets(targets, generator):
        try:
            whole, parts = float(loss(random, tried)), _in_parts(measure, loss, random, tried)
        except (RuntimeError, ValueError, IndexError, DataError):
            continue  # these are no targets for this loss
        if isfinite(whole) and not isclose(whole, parts, rel_tol=1e-3, abs_tol=1e-5):
            raise JobError(
                f"{what}: the loss of a batch is not the mean of its parts' losses ({whole:.5g}, not "
                f"{parts:.5g}), so that micro-batches would train something else",
                hint="set micro_batches = 1, or let the loss be a mean over the samples",
            )


def _in_parts(measure: Measure, loss: LossFunction, outputs: Tensors, targets: Tensors) -> float:
    """The loss of a batch, from those of its two halves."""
    wanted = split_batch(targets, 2)
    losses = [float(loss(*part)) for part in zip(split_batch(outputs, 2), wanted, strict=True)]
    return sum(each * share for each, share in zip(losses, measure.shares(wanted), strict=True) if share)


def _tried_targets(targets: Tensors, generator: torch.Generator) -> Iterator[Tensors]:
    yield targets
    answers = tuple(torch.randint(2, y.shape, generator=generator).to(y.dtype) for y in targets)
    yield answers
    ignored = [torch.rand(y.shape, generator=generator) < 0.3 for y in targets]
    yield tuple(
        y.masked_fill(left_out, IGNORED_CLASS) if y.dtype == torch.int64 else y
        for y, left_out in zip(answers, ignored, strict=True)
    )
