"""Check that the loss leaves out what a micro-batch is padded with."""

from __future__ import annotations

from math import isclose, isfinite

import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.lengths import FreeLength
from spliteasy.job.spec import JobSpec
from spliteasy.training.losses import LossFunction

Tensors = tuple[Tensor, ...]


def check_padding(
    spec: JobSpec, loss: LossFunction, outputs: Tensors, targets: Tensors, free: FreeLength
) -> None:
    """Refuse a loss that counts padding, which would train another model than samples of one length do.

    Random outputs are compared at a length and padded to the longest, with whatever a model gives there.
    `free` is of the outputs, then of the targets. Raises JobError.
    """
    count = len(outputs)
    of_outputs = FreeLength(free.dims[:count], free.longest)
    of_targets = FreeLength(free.dims[count:], free.longest)
    generator = torch.Generator().manual_seed(spec.seed)
    random = tuple(
        torch.randn(y.shape, generator=generator, dtype=y.dtype) if y.is_floating_point() else y
        for y in (each.detach() for each in outputs)
    )
    for length in free.tried:
        padded = tuple(
            _padded(target, dims, length, spec.model.pad.get(name, 0))
            for target, dims, name in zip(targets, of_targets.dims, spec.model.targets, strict=True)
        )
        whole = float(loss(random, padded))
        short = float(loss(of_outputs.cut(random, length), of_targets.cut(targets, length)))
        if isfinite(short) and not isclose(whole, short, rel_tol=1e-3, abs_tol=1e-5):
            what = spec.loss.name or spec.loss.function
            raise JobError(
                f"loss {what} counts what samples are padded with: it is {short:.5g} at their length of "
                f"{length}, and {whole:.5g} padded to {free.longest}",
                hint="pad labels with -100 in [model.pad], and let the loss be a mean over labelled "
                "elements, as cross_entropy with ignore_index=-100 is",
            )


def _padded(target: Tensor, dims: tuple[int, ...], length: int, value: bool | int | float) -> Tensor:
    """The target, of which only the first `length` places are left as they are."""
    made = target.clone()
    for dim in dims:
        made.narrow(dim, length, made.shape[dim] - length).fill_(value)
    return made
