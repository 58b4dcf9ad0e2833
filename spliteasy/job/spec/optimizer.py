"""The sections `[optimizer]`, `[schedule]` and `[clip]` of a job file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from spliteasy.job.spec.values import (
    Count,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Section,
    Steps,
    only,
    refuse,
)


class GroupSpec(Section):
    """Settings for the parameters whose original name matches `pattern`; the first match counts."""

    pattern: Name
    """The pattern is one of `fnmatch`: `stem.*`, `*.bias`."""
    lr: NonNegative | None = None
    weight_decay: NonNegative | None = None
    frozen: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.frozen and (self.lr is not None or self.weight_decay is not None):
            raise refuse("a frozen group takes no lr and no weight_decay")
        if not self.frozen and self.lr is None and self.weight_decay is None:
            raise refuse("a group needs lr, weight_decay or frozen = true")
        return self


class _OptimizerBase(Section):
    lr: Positive
    weight_decay: NonNegative = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The decay of an exponential moving average of the weights, which evaluation, prediction and the merged
    model use."""
    groups: Annotated[tuple[GroupSpec, ...], Field(max_length=64)] = ()


class SgdSpec(_OptimizerBase):
    """`torch.optim.SGD`."""

    name: Literal["sgd"]
    momentum: NonNegative = 0.0
    dampening: NonNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise refuse("nesterov needs momentum > 0 and dampening = 0")
        return self


class AdamSpec(_OptimizerBase):
    """`torch.optim.Adam`."""

    name: Literal["adam"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamWSpec(_OptimizerBase):
    """`torch.optim.AdamW`."""

    name: Literal["adamw"]
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8


class RmsPropSpec(_OptimizerBase):
    """`torch.optim.RMSprop`."""

    name: Literal["rmsprop"]
    alpha: Fraction = 0.99
    eps: Positive = 1e-8
    momentum: NonNegative = 0.0
    centered: bool = False


class AdagradSpec(_OptimizerBase):
    """`torch.optim.Adagrad`."""

    name: Literal["adagrad"]
    lr_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


class LionSpec(_OptimizerBase):
    """Lion: steps of equal size by the sign of a momentum (`spliteasy.training.lion`)."""

    name: Literal["lion"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)


OptimizerSpec = Annotated[
    SgdSpec | AdamSpec | AdamWSpec | RmsPropSpec | AdagradSpec | LionSpec, Field(discriminator="name")
]


class _ScheduleBase(Section):
    warmup_steps: Steps = 0
    """The rate rises in equal parts over these steps, and is whole at the last of them."""


class ConstantSpec(_ScheduleBase):
    """The rate stays."""

    name: Literal["constant"] = "constant"


class StepSpec(_ScheduleBase):
    """The rate is multiplied by `gamma` after every `step_size` steps that follow the warm-up."""

    name: Literal["step"]
    step_size: Count
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class CosineSpec(_ScheduleBase):
    """The rate falls by half a cosine to `min_factor` at `steps`, warm-up included, and stays there.

    `steps` is explicit: devices differ in data size, and the server does not know it.
    """

    name: Literal["cosine"]
    steps: Count
    min_factor: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _longer_than_warmup(self) -> Self:
        if self.steps <= self.warmup_steps:
            raise refuse(f"steps ({self.steps}) must be more than warmup_steps ({self.warmup_steps})")
        return self


def _no_plateau(schedule: Any) -> Any:
    name = schedule.get("name") if isinstance(schedule, dict) else None
    if isinstance(name, str) and "plateau" in name.lower():
        raise refuse(
            f"{name!r} is no function of the step: it follows evaluations that only the device has, and the "
            'worker takes its steps without them; use "cosine" or "step"'
        )
    return schedule


ScheduleSpec = Annotated[
    ConstantSpec | StepSpec | CosineSpec, Field(discriminator="name"), BeforeValidator(_no_plateau)
]


class ClipSpec(Section):
    """Clip the gradient's 2-norm, for each segment on its own."""

    max_norm: Positive
    scope: Annotated[str, only("segment", planned=("global",))] = "segment"
