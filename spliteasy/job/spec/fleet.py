"""The section `[fleet]` of a job file: how devices train one model."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from spliteasy.job.spec.values import Count, Positive, Section, only, parses, refuse
from spliteasy.runtime.units import parse_duration

_SHARED_MODE_KEYS = ("window", "order", "merge")
"""Keys of `mode = "shared"`, which is not built."""
MAX_ROUND_SAMPLES = 1 << 30
ROUND_SAMPLES = 1 << 20
"""The most samples of a device's round where sealing needs a limit and the job says none."""
LEAST_SEALED = 3


class FleetSpec(Section):
    """Settings of the rounds in which devices make one model (docs/fleet.md).

    Under "splitfed" every device trains its own copy of the body for a round, and at the round's end all go
    on from the mean (SplitFed V1; with `ends = "own"` V3). Every key but `mode` belongs to it.
    """

    mode: Annotated[str, only("personal", "splitfed", planned=("shared", "relay"))] = "personal"
    """"personal": each device trains a model of its own."""
    ends: Annotated[str, only("average", "own", planned=("relay",))] = "average"
    """Head and tail are averaged with the body, or stay each device's own."""
    round_steps: Count | None = None
    """Training steps of a device between two means; or `round_epochs`: passes over its own data."""
    round_epochs: Count | None = None
    devices_per_round: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of devices that are drawn for a round, among those that are there. None: all of them."""
    quorum: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 0.5
    """The devices of a round that have to hand in for their mean to count: a number, or a share."""
    deadline: Annotated[str, parses(parse_duration)] = "10min"
    """The longest that a round lasts. A device that has not handed in by then is left out of its mean."""
    weights: Annotated[str, only("samples", "equal")] = "samples"
    """A device counts for the samples that it trained on in the round, or as much as any other."""
    optimizer: Annotated[str, only("reset", "keep", "average")] = "reset"
    """The fate of the optimizers' state at a mean."""
    norm: Annotated[str, only("average", "local")] = "average"
    """"local" (FedBN): batch norm, with its weights and running statistics, stays each device's own."""
    aggregate: Annotated[str, only("plain", "sealed")] | None = None
    """Averaged ends leave a device "sealed", the default, so that only devices can read them, or "plain", in
    the open (with `share_ends`)."""
    max_samples: Annotated[int, Field(ge=1, le=MAX_ROUND_SAMPLES)] | None = None
    """The most samples that a device may have trained on in a round."""
    max_norm: Positive = 1e6
    """The largest 2-norm that the averaged weights which a device hands in may have."""

    @model_validator(mode="before")
    @classmethod
    def _other_modes(cls, data: Any) -> Any:
        for key in _SHARED_MODE_KEYS:
            if isinstance(data, dict) and key in data:
                raise refuse(f'{key} belongs to mode = "shared", which is not built yet; remove it')
        return data

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.mode == "personal":
            defaults = {key: field.default for key, field in type(self).model_fields.items()}
            given = self.model_fields_set - {"mode"}
            if unused := sorted(key for key in given if getattr(self, key) != defaults[key]):
                raise refuse(
                    f'{", ".join(unused)} belongs to mode = "splitfed": under "personal" nothing is averaged'
                )
            return self
        if self.round_steps is not None and self.round_epochs is not None:
            raise refuse("give either round_steps or round_epochs: both say when a round ends")
        if self.ends == "own" and self.aggregate is not None:
            raise refuse('aggregate says how ends leave a device, and with ends = "own" they never do')
        if self.seals and self.optimizer == "average":
            raise refuse(
                'optimizer = "average" needs numbers of any size, and sealed ends are whole numbers within a '
                'range: use optimizer = "reset" or "keep", or aggregate = "plain"'
            )
        few = self.devices_per_round
        if self.seals and few is not None and few < LEAST_SEALED:
            raise refuse(
                f"devices_per_round = {few}: a sealed mean takes {LEAST_SEALED} devices, since the mean "
                "of two tells each of them what the other has"
            )
        most = self.devices_per_round
        if most is not None and not isinstance(self.quorum, float) and self.quorum > most:
            raise refuse(
                f"quorum = {self.quorum} can never be reached by devices_per_round = {most}; lower the quorum"
            )
        if parse_duration(self.deadline) <= 0:
            raise refuse("deadline must be longer than nothing")
        return self

    @property
    def averages(self) -> bool:
        """Return whether there are rounds at all."""
        return self.mode == "splitfed"

    @property
    def epochs_per_round(self) -> int | None:
        """Return the passes over its data that a device makes in a round; None if it counts steps."""
        return None if self.round_steps is not None else self.round_epochs or 1

    @property
    def averages_ends(self) -> bool:
        """Return whether head and tail leave the devices for the mean."""
        return self.averages and self.ends == "average"

    @property
    def seals(self) -> bool:
        """Return whether head and tail leave the devices so that only devices can read them."""
        return self.averages_ends and self.aggregate != "plain"

    def most_weight(self, batch_size: int) -> int:
        """Return the most that a device can count for in a mean."""
        if self.weights == "equal":
            return 1
        if self.max_samples is not None:
            return self.max_samples
        return ROUND_SAMPLES if self.round_steps is None else self.round_steps * batch_size

    @property
    def deadline_s(self) -> float:
        return parse_duration(self.deadline)
