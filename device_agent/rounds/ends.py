"""Head and tail in the rounds of a fleet: what a device hands in, and how it goes on from the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from broker.protocol.messages import SealedSum
from device_agent.rounds.place import RoundPlace
from spliteasy.errors import DataError
from spliteasy.fleet.handover import open_handover, seal_handover
from spliteasy.fleet.parts import averaged_end, like_of_optimizer, rebased
from spliteasy.fleet.sealed import SealedPart, fraction_bits, seal, unseal
from spliteasy.job import Job
from spliteasy.runtime.randomness import Key
from spliteasy.training.segment_trainer import (
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
    SegmentTrainer,
    all_finite,
    under,
)

SEALED = "sealed"
"""The name of sealed ends, and of their sum."""


@dataclass(slots=True)
class RoundEnds:
    """The ends of one device in its fleet's rounds. No step is open while one of its methods is called."""

    job: Job
    device: str
    ends: Sequence[tuple[str, SegmentTrainer]]
    """Head and tail, each under the prefix of its names."""
    place: RoundPlace = field(default_factory=RoundPlace)
    """The device's place in the rounds."""
    length: int = 0
    """Steps of a round; 0: there are none."""
    key_name: str | None = None
    """The name of the key that the initial ends were drawn from, where devices share one."""
    secret: Key | None = None
    """That key: what is handed in is sealed with it, where the job says so."""
    initial: dict[str, Tensor] = field(init=False)
    """The averaged part of the ends as they began."""

    def __post_init__(self) -> None:
        self.initial = self.averaged()

    def averaged(self) -> dict[str, Tensor]:
        """Return a copy of what of head and tail goes into the mean; nothing where they stay this device's
        own.
        """
        fleet = self.job.spec.fleet
        if not fleet.ends_leave:
            return {}
        return {
            prefix + name: tensor
            for prefix, trainer in self.ends
            for name, tensor in averaged_end(trainer, fleet).items()
        }

    def hand_in(self, nonce: str) -> dict[str, Tensor]:
        """Return what the round gets of head and tail; nothing where this device comes new.

        Sealed ends are one tensor, under a pad that `nonce` names. Raises DataError for what can't be sealed.
        """
        place, spec = self.place, self.job.spec
        ends = self.averaged() if place.round and self.whole_round else {}
        if not ends or not spec.fleet.seals:
            return ends
        key = self._sealing_key()
        if spec.fleet.hands_over:
            sealed = seal_handover(ends, key=key, device=self.device, turn=place.round, nonce=nonce)
            return {SEALED: sealed}
        part = SealedPart(self.device, nonce, spec.fleet.weight_of(place.round_samples))
        bits = fraction_bits(spec, place.drawn)
        return {SEALED: seal(ends, part, key=key, round_=place.opened + 1, bits=bits)}

    @property
    def whole_round(self) -> bool:
        """Return whether the device has ended its round; else there are more windows of it."""
        return not self.job.spec.fleet.shares_body or self.place.steps >= self.length

    def opened(self, total: Tensor, about: SealedSum) -> dict[str, Tensor]:
        """Return the mean that a sealed sum stands for, or what a device handed over. Raises WrongSum,
        ForeignHandover, DataError.
        """
        if self.job.spec.fleet.hands_over:
            if len(about.addends) != 1:
                raise DataError(f"the worker sent the handover of {len(about.addends)} devices")
            by = about.addends[0]
            key = self._sealing_key()
            return open_handover(total, key=key, device=by.device, turn=about.round, nonce=by.nonce)
        parts = [SealedPart(each.device, each.nonce, each.weight) for each in about.addends]
        bits, key = fraction_bits(self.job.spec, about.drawn), self._sealing_key()
        return unseal(total, parts, self.initial, key=key, round_=about.round, bits=bits)

    def _sealing_key(self) -> Key:
        assert self.secret is not None, "a device without the fleet's key does not begin"
        return self.secret.at("seal")

    def take_mean(
        self,
        mean: Mapping[str, Tensor] | None,
        *,
        round_: int,
        drawn: int,
        opened: int | None = None,
        kept: bool = False,
        scheduled: int | None = None,
    ) -> None:
        """Go on from the mean of round `round_`; None: from the ends as they began, or as they are (`kept`).

        `opened`: the record that began the round under way, where that is not `round_`; `scheduled`: the
        steps that the schedule goes on from, where these are not the device's own. Raises DataError where it
        is not a mean of these ends.
        """
        fleet = self.job.spec.fleet
        began = round_ if opened is None else opened
        self.place = self.place.gone_on(round_, opened=began, drawn=drawn, kept=kept)
        if kept:
            for _, trainer in self.ends:
                trainer.rebase(None, scheduled=scheduled)
            return
        tensors = self.initial if mean is None else mean
        self._check_mean(tensors)
        for prefix, trainer in self.ends:
            own = under(prefix, tensors)
            state = rebased(trainer.snapshot(), own, fleet) if fleet.ends_leave else None
            trainer.rebase(state, scheduled=scheduled)

    def _check_mean(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise DataError unless the mean has the weights of these ends, in their shapes, and no NaN."""
        expected = self.initial
        weights = {name: tensor for name, tensor in tensors.items() if MODEL_PREFIX in name}
        if weights.keys() != expected.keys():
            raise DataError("the worker sent a mean of other tensors than this device's head and tail have")
        for name, tensor in tensors.items():
            like = expected.get(name)
            if OPTIMIZER_PREFIX in name:
                like = like_of_optimizer(name, expected, self.job.spec)
                if like is None:
                    raise DataError(f"the worker sent {name}, which no optimizer of this device keeps")
            if like is not None and (tensor.shape != like.shape or tensor.dtype != like.dtype):
                raise DataError(f"the mean of {name} has another shape or type than this device's own")
            if tensor.is_floating_point() and not all_finite([tensor]):
                raise DataError(f"the mean of {name} has numbers that are not finite; nothing was changed")
