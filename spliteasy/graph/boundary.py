"""Checks of what arrives at a cut, before anything is computed with it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from spliteasy.errors import DataError
from spliteasy.graph.document import Value, ValueSpec, extent_of


def check_values(
    values: Sequence[Value | None], specs: Sequence[ValueSpec], *, samples: int | None, length: int = 0
) -> tuple[Value, ...]:
    """The values, if there is one of the right dtype and shape for each spec; else DataError.

    `samples`, `length`: the batch size that they must have, and the length to which the samples are padded;
    None takes both from the values themselves.
    """
    if len(values) != len(specs):
        raise DataError(f"{len(values)} values arrived at a cut of {len(specs)}")
    present = tuple(value for value in values if value is not None)
    if len(present) != len(values):
        raise DataError("a value of the cut is absent")
    batch, long = (samples, length) if samples is not None else extent_of(specs, present)
    for value, spec in zip(present, specs, strict=True):
        problem = spec.problem_with(value, batch or 0, long or 0)
        if problem is not None:
            raise DataError(problem)
    return present


def check_gradients(gradients: Sequence[Value | None], outputs: Sequence[Value]) -> tuple[Tensor | None, ...]:
    """The gradients, one for each output: absent, or of the output's shape and dtype; else DataError."""
    if len(gradients) != len(outputs):
        raise DataError(f"{len(gradients)} gradients arrived for {len(outputs)} values of the cut")
    checked: list[Tensor | None] = []
    for index, (gradient, output) in enumerate(zip(gradients, outputs, strict=True)):
        if gradient is None or not isinstance(output, Tensor):
            checked.append(None)
        elif isinstance(gradient, Tensor) and (gradient.shape, gradient.dtype) == (
            output.shape,
            output.dtype,
        ):
            checked.append(gradient)
        else:
            raise DataError(
                f"gradient {index} has not the shape {tuple(output.shape)} and dtype of its output"
            )
    return tuple(checked)
