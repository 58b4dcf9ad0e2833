"""The sections `[model]` and `[loss]` of a job file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from spliteasy.job.spec.values import Name, Names, Reference, Section, auto_or_cuts, refuse, unique


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
