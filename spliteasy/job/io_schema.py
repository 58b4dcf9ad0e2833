"""The schema of a job's inputs and outputs: names, shapes and dtypes, to check data before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import orjson
import torch
from pydantic import Field
from torch import Tensor

from spliteasy.graph.document import DtypeName
from spliteasy.job.spec import MAX_COUNT, Name, Section


class SampleSpec(Section):
    """One tensor of a sample."""

    name: Name
    dtype: DtypeName
    """The dtype as torch names it: `float32`, `int64`."""
    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_COUNT)], ...], Field(max_length=32)]
    """The shape without the batch dimension."""

    @classmethod
    def of(cls, name: str, batch: Tensor) -> Self:
        """The spec of one sample of `batch`, whose first dimension counts samples."""
        return cls.model_validate(
            {"name": name, "dtype": dtype_name(batch.dtype), "shape": tuple(batch.shape[1:])}
        )

    def __str__(self) -> str:
        return told(self.dtype, self.shape)


class Signature(Section):
    """The model's inputs, targets and outputs, in order."""

    inputs: Annotated[tuple[SampleSpec, ...], Field(min_length=1, max_length=16)]
    targets: Annotated[tuple[SampleSpec, ...], Field(min_length=1, max_length=16)]
    outputs: Annotated[tuple[SampleSpec, ...], Field(min_length=1, max_length=64)]
    least_samples: Annotated[int, Field(ge=1, le=2)] = 1
    """The fewest samples that a training batch, or a part of it, may have: 2 where the model normalises by
    statistics over the batch, which one sample does not have."""

    def to_json(self) -> bytes:
        left_out = {"least_samples"} if self.least_samples == 1 else set()
        return orjson.dumps(self.model_dump(mode="json", exclude=left_out), option=orjson.OPT_SORT_KEYS)


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


def told(dtype: str, shape: Sequence[int]) -> str:
    """`float32[1, 8, 8]`, as errors name a tensor."""
    return f"{dtype}[{', '.join(map(str, shape))}]"
