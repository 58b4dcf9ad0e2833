"""The section `[fleet]` of a job file: how devices train one model."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from spliteasy.job.spec.values import Count, Positive, Section, only, parses, refuse
from spliteasy.runtime.units import parse_duration

MAX_ROUND_SAMPLES = 1 << 30
ROUND_SAMPLES = 1 << 20
"""The most samples of a device's round where sealing needs a limit and the job says none."""
LEAST_SEALED = 3

_RELAY_HAS_NO = {
    "devices_per_round": "one device trains at a time",
    "weights": "nothing is averaged, so that nothing is weighed",
    "quorum": "a turn has one device, and is void without it",
}


class FleetSpec(Section):
    """Settings of the rounds in which devices make one model (docs/fleet.md).

    Under "splitfed" every device trains its own copy of the body for a round, and at the round's end all go
    on from the mean (SplitFed V1; with `ends = "own"` V3). Under "relay" one device trains at a time, and
    hands all that it has over to the next: weights, statistics, optimizers, and the schedule's position.
    Under "shared" there is one body, whose every step takes the batches of several devices, a window; with
    `window = 1` of one (SplitFed V2). Ends are averaged after each round, or stay each device's own.
    """

    mode: Annotated[str, only("personal", "splitfed", "shared", "relay")] = "personal"
    """"personal": each device trains a model of its own."""
    ends: Annotated[str, only("average", "own", "relay")] = "average"
    """Head and tail are averaged with the body, stay each device's own, or are handed over ("relay", which
    belongs to the mode of that name)."""
    round_steps: Count | None = None
    """Training steps of a device between two means; or `round_epochs`: passes over its own data."""
    round_epochs: Count | None = None
    devices_per_round: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of devices that are drawn for a round, among those that are there. None: all of them."""
    quorum: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 0.5
    """The devices of a round that have to hand in for their mean to count: a number, or a share."""
    deadline: Annotated[str, parses(parse_duration)] = "10min"
    """The longest that a round lasts. A device that has not handed in by then is left out of its mean."""
    window: Count | None = None
    """Devices whose batches make one step of a body that is "shared"; None: all devices of the round."""
    order: Annotated[str, only("fixed", "arrival")] = "fixed"
    """The order in which windows take the devices of a round, and turns those of a fleet: "fixed" by the
    job's seed and their names, or the device first that has waited longest ("arrival"). Records keep it."""
    weights: Annotated[str, only("samples", "equal")] = "samples"
    """A device counts for the samples that it trained on in the round, or as much as any other."""
    optimizer: Annotated[str, only("reset", "keep", "average")] = "reset"
    """The fate of the optimizers' state at a mean. The optimizer of a body that is "shared" just goes on."""
    norm: Annotated[str, only("average", "local")] = "average"
    """"local" (FedBN): batch norm, with its weights and running statistics, stays each device's own."""
    aggregate: Annotated[str, only("plain", "sealed")] | None = None
    """Ends that are averaged or handed over leave a device "sealed", the default, so that only devices can
    read them, or "plain", in the open (with `share_ends`)."""
    max_samples: Annotated[int, Field(ge=1, le=MAX_ROUND_SAMPLES)] | None = None
    """The most samples that a device may have trained on in a round."""
    max_norm: Positive = 1e6
    """The largest 2-norm that the averaged weights which a device hands in may have."""

    @model_validator(mode="before")
    @classmethod
    def _other_modes(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("mode") == "relay":
            return {"ends": "relay", "optimizer": "average"} | data
        return data

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        changed = self._changed()
        if self.mode == "personal":
            if changed:
                raise refuse(
                    f'{", ".join(sorted(changed))} belongs to mode = "splitfed": under "personal" nothing is '
                    "averaged"
                )
            return self
        if self.mode == "relay":
            self._check_relay(changed)
        elif self.ends == "relay":
            raise refuse(
                f'ends = "relay" hands head and tail over to the next device: that needs mode = "relay", and '
                f'under "{self.mode}" ends are "average" or "own"'
            )
        if self.round_steps is not None and self.round_epochs is not None:
            raise refuse("give either round_steps or round_epochs: both say when a round ends")
        if self.mode == "shared":
            self._check_shared()
        elif self.window is not None:
            raise refuse(
                f'window belongs to mode = "shared": under "{self.mode}" no step takes the batches of '
                "several devices; remove it"
            )
        if self.order == "arrival" and self.window is None and not self.hands_over:
            raise refuse(
                'order = "arrival" needs devices that wait for each other: mode = "relay", or "shared" '
                "with a window; else all of a round train at once, and nothing depends on their order"
            )
        if self.ends == "own" and self.aggregate is not None:
            raise refuse('aggregate says how ends leave a device, and with ends = "own" they never do')
        if self.seals_sums and self.optimizer == "average":
            raise refuse(
                'optimizer = "average" needs numbers of any size, and sealed ends are whole numbers within a '
                'range: use optimizer = "reset" or "keep", or aggregate = "plain"'
            )
        few = self.devices_per_round
        if self.seals_sums and few is not None and few < LEAST_SEALED:
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

    def _changed(self) -> set[str]:
        """Return the keys that were given another value than their default."""
        defaults = {key: field.default for key, field in type(self).model_fields.items()}
        given = self.model_fields_set - {"mode"}
        return {key for key in given if getattr(self, key) != defaults[key]}

    def _check_relay(self, changed: set[str]) -> None:
        for key, why in _RELAY_HAS_NO.items():
            if key in changed:
                raise refuse(f'{key} has no meaning under mode = "relay": {why}; remove it')
        if self.ends != "relay":
            raise refuse(
                f'ends = "{self.ends}": under mode = "relay" head and tail are handed over to the next '
                "device; remove ends"
            )
        if self.optimizer != "average":
            raise refuse(
                f'optimizer = "{self.optimizer}": under mode = "relay" the optimizers are handed over with '
                "the weights; remove optimizer"
            )

    def _check_shared(self) -> None:
        if self.norm == "local":
            raise refuse(
                'norm = "local" keeps batch norm each device\'s own, and under mode = "shared" the body is '
                'one, with its batch norm; use mode = "splitfed" (FedBN), or remove norm'
            )
        most = self.devices_per_round
        if self.window is not None and most is not None and self.window > most:
            raise refuse(
                f"window = {self.window} can never be filled by devices_per_round = {most}; lower the window"
            )

    @property
    def has_rounds(self) -> bool:
        """Return whether there are rounds at all (under "relay": turns)."""
        return self.mode != "personal"

    @property
    def hands_over(self) -> bool:
        """Return whether a round is the turn of one device, whose work the next one goes on with."""
        return self.mode == "relay"

    @property
    def shares_body(self) -> bool:
        """Return whether there is one body, of which each step takes the gradients of a window's devices."""
        return self.mode == "shared"

    @property
    def epochs_per_round(self) -> int | None:
        """Return the passes over its data that a device makes in a round; None if it counts steps."""
        return None if self.round_steps is not None else self.round_epochs or 1

    @property
    def ends_leave(self) -> bool:
        """Return whether head and tail leave the devices, to be averaged or handed over."""
        return self.has_rounds and self.ends != "own"

    @property
    def seals(self) -> bool:
        """Return whether head and tail leave the devices so that only devices can read them."""
        return self.ends_leave and self.aggregate != "plain"

    @property
    def seals_sums(self) -> bool:
        """Return whether what is sealed is added up: as whole numbers, of three devices or more."""
        return self.seals and not self.hands_over

    def weight_of(self, samples: int) -> int:
        """Return what a device counts for that has trained on so many samples."""
        by_samples = self.weights == "samples" and not self.hands_over
        return samples if by_samples else int(samples > 0)

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
