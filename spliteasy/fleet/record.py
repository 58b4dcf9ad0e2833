"""The record of a round: the decision at its end, written before anybody acts on it.

Records of a job's version are a hash chain, number 0 first: each names the one before by its digest, so that
a record which a store forgot, and which was then made again in another way, is never taken for the first one.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from spliteasy.errors import StoreError

Device = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,64}$")]
Count = Annotated[int, Field(ge=0)]
Devices = Annotated[tuple[Device, ...], Field(strict=False)]


MOST_VOIDS = 20
"""After so many void rounds in a row a fleet is paused."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class HandedIn(_Part):
    """A device's hand-in for a round: its weights are in the store, under this digest.

    Where the body is shared it is for a window: the gradients of one batch and, with the last one of the
    device's round, its ends.
    """

    samples: Count
    """Samples it trained on in the round (or window), as the worker counted them."""
    round_samples: Count = 0
    """Those of all windows of the round, where the body is shared: what its ends count for."""
    whole: bool = True
    """It has ended its round: what it handed in has its ends, where these leave it."""
    first: Count
    """Optimizer steps it had taken when it began the round (or window)."""
    last: Count
    """Optimizer steps it had taken when it handed in."""
    digest: Hex
    nonce: Hex | None = None
    """Names the pad of what was sealed; None: nothing was."""


class EndedRound(_Part):
    """A device that has ended its round: what it handed in with its last window has its ends."""

    window: Count
    """The record of that window."""
    samples: Count
    """Samples that it trained on in the whole round."""
    digest: Hex
    nonce: Hex | None = None


class RoundRecord(_Part):
    """The decision at the end of round `number`; number 0 is where the first round begins."""

    number: Count
    previous: str
    """The digest of record `number - 1`; empty for the first."""
    participants: dict[Device, HandedIn]
    """The devices whose weights the mean is taken over."""
    weights: dict[Device, Count]
    """The weight of each of them in the mean."""
    base: Count
    """The round whose mean everybody goes on from: this one or, where it is void, an earlier one. The mean of
    round 0 is the initial model."""
    drawn: Count = 0
    """The number of devices that were drawn for the round that this record belongs to."""
    cohort: Devices
    """The devices drawn for the next round, by name; for the next window, where the body is shared."""
    rest: Devices = ()
    """Those of the round under way whose windows come later."""
    there: Count = 0
    """The number of devices that could be drawn when the record was made."""
    opened: Count = 0
    """The record that began the round under way after this one: this one, where it ends a round."""
    began: Count = 0
    """The record that began the round that this one belongs to."""
    ended: dict[Device, EndedRound] = {}
    """The devices that have ended the round that this record belongs to, so far, where the body is shared."""
    ends_base: Count = 0
    """The record whose mean of ends all go on from, where the body is shared; 0: the initial ends."""
    closed_at: float
    """Unix time, by the store's clock."""
    mean_before: Hex | None = None
    """The digest of the mean that this round began from; None: the initial model."""
    steps: Count = 0
    """Optimizer steps behind the mean, where the learning rate's schedule counts those of all devices, or of
    the body that they share."""
    voids: Count = 0
    """The number of void rounds in a row, up to this one."""
    fleet_key: Hex | None = None
    """The name of the fleet key that the devices drew their initial ends from; it does not tell the key."""

    @property
    def drawn_for_next(self) -> int:
        """Return the number of devices drawn for the round under way after this record."""
        return len(self.cohort) + len(self.rest) if self.opened == self.number else self.drawn

    @property
    def paused(self) -> bool:
        """Return whether so many rounds in a row were void that none begins until a person says so."""
        return self.voids >= MOST_VOIDS

    @property
    def void(self) -> bool:
        """Return whether too few devices handed in, so that nothing moves."""
        return self.base != self.number

    def to_json(self) -> bytes:
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits that name this record and all before it."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """Raises StoreError where the store holds something else."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise StoreError(f"the store holds a record of a round that can't be read: {error}") from error


class Member(_Part):
    """A device that waits at the end of a round, or for one to begin."""

    seen: float
    """When it asked last, by the store's clock."""
    since: float = 0.0
    """When it began to ask for what it waits for."""
    done: bool
    """It has taken its last step and wants the mean only."""
    fleet_key: Hex | None = None
    accuracy: float | None = None
    """The accuracy of the common model on its own test data, as it said last."""
    round: Count = 0
    """The round that it handed in for; 0: it comes new."""
    handed: HandedIn | None = None

    def to_json(self) -> bytes:
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """Raises StoreError where the store holds something else."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise StoreError(f"the store holds a device's entry that can't be read: {error}") from error
