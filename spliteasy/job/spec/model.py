"""The sections `[model]` and `[loss]` of a job file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from spliteasy.job.spec.values import (
    MAX_LENGTH,
    Name,
    Names,
    Reference,
    Section,
    auto_or_cuts,
    refuse,
    unique,
)

PadValue = Annotated[bool | int | float, Field(union_mode="left_to_right")]
LEAST_MAX_LENGTH = 4
"""Below it a length is a number of columns, and no sequence."""


class ModelSpec(Section):
    """The model that is trained, and where it is cut."""

    factory: Reference
    """This function is called without arguments after torch was seeded with the job's seed; it returns an
    `nn.Module`."""
    example: Reference
    """Returns (inputs, targets), each a tensor or a tuple of them, batch first: shapes and dtypes count."""
    cuts: Annotated[
        tuple[Name, ...], BeforeValidator(auto_or_cuts), Field(max_length=2), AfterValidator(unique)
    ]
    """One cut: head and body, the worker computes the loss. Two: head, body and tail. "auto": planned."""
    inputs: Names = ("input",)
    targets: Names = ("target",)
    max_length: Annotated[int, Field(ge=LEAST_MAX_LENGTH, le=MAX_LENGTH)] | None = None
    """The length of the longest samples, where each has its own: a micro-batch is padded to its longest.
    None: all samples have the example's shapes."""
    pad: Annotated[dict[Name, PadValue], Field(max_length=32)] = Field(default_factory=dict)
    """The value that each input and target with a length is padded with, by name; the length is the first
    dimension of a sample. Others have no length."""

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.max_length is None:
            if self.pad:
                raise refuse("model.pad: samples are padded where model.max_length says how long they may be")
            return self
        names = (*self.inputs, *self.targets)
        for name in self.pad:
            if name not in names:
                raise refuse(f"model.pad: {name!r} is neither input nor target; they are {', '.join(names)}")
        if not set(self.pad) & set(self.inputs):
            raise refuse(
                "model.max_length: name in [model.pad] the inputs that have a length, and what each is "
                "padded with, as in pad = { input_ids = 0, attention_mask = 0, labels = -100 }"
            )
        return self

    def left_out(self) -> dict[str, Any]:
        """Return the keys that older versions do not know, where they are not used."""
        return {} if self.max_length is not None else {"max_length": True, "pad": True}

    @property
    def auto(self) -> bool:
        """Return whether the cuts are still to be planned, which is never so in a job that was submitted."""
        return not self.cuts


class LossSpec(Section):
    """A name from `spliteasy.training.losses`, or a function over (outputs, targets) traced at submit.

    Where the job has one output or one target, the function gets that tensor itself, else a tuple.
    """

    name: Literal["cross_entropy", "nll", "bce_with_logits", "mse", "l1", "smooth_l1"] | None = None
    function: Reference | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.name is None) == (self.function is None):
            raise refuse("give either name or function")
        return self
