"""The values of a step as the device sends and gets them: packed, each way by the codec chosen for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from broker.protocol.messages import Value
from device_agent.training.codec_policy import StepChoices, Values, Way
from spliteasy.codecs import parse_codec
from spliteasy.codecs.packer import Expected, Packed, Packer, Place, bytes_of, unpack
from spliteasy.job import JobSpec
from spliteasy.training.segment_trainer import SegmentTrainer


@dataclass(frozen=True, slots=True)
class DeviceWire:
    """`packer` packs what the device sends; what error feedback holds back is in it."""

    codecs: Mapping[Place, Sequence[str]]
    packer: Packer
    choices: StepChoices

    def pack(
        self,
        place: Place,
        values: Sequence[Value],
        *,
        step: int,
        answer: Place,
        nbytes: Mapping[Values, int],
        micro: int = 0,
        ahead: Packed | None = None,
    ) -> Packed:
        """Pack for a message of `step` that is answered with values of `answer`.

        `nbytes`: of all values of the step, before packing. `ahead`: what `pack_ahead` gave for them.
        """
        chosen = self.choices.at(step, nbytes)
        codec = chosen["up", place]
        packed = ahead or self.packer.pack(place, values, step=step, micro=micro, codec=codec)
        self._count("up", place, codec, bytes_of(values), packed)
        return self._answered_by(packed, answer, chosen["down", answer])

    def pack_ahead(self, place: Place, values: Sequence[Value], *, step: int, micro: int) -> Packed | None:
        """Pack for a later step; None where that depends on those before it, or on a choice to come."""
        if len(self.codecs[place]) > 1 or self.packer.feedback(place):
            return None
        return self.packer.pack(place, values, step=step, micro=micro)

    def pack_evaluation(self, values: Sequence[Value]) -> Packed:
        """Pack a head's outputs in evaluation mode: that changes nothing, so nothing is written down."""
        choose, nbytes = self.choices.chooser.choose, bytes_of(values)
        packed = self.packer.pack_evaluation(values, codec=choose(("up", "activations"), nbytes))
        return self._answered_by(packed, "activations", choose(("down", "activations"), nbytes))

    def unpack(self, place: Place, packed: Packed, expected: Sequence[Expected]) -> tuple[Value, ...]:
        """Return the values that have arrived, of the expected shapes. Raises DataError."""
        values = unpack(packed, expected, codecs=self.codecs[place])
        self._count("down", place, packed.codec, bytes_of(values), packed)
        return values

    def _count(self, way: Way, place: Place, codec: str, before: int, packed: Packed) -> None:
        self.choices.chooser.packed((way, place), codec, before=before, after=packed.nbytes)

    def _answered_by(self, packed: Packed, place: Place, codec: str) -> Packed:
        return replace(packed, reply_codec=codec) if len(self.codecs[place]) > 1 else packed


def rows_come_again(spec: JobSpec, head: SegmentTrainer) -> bool:
    """Return whether a sample's activations cross the cut alike in each epoch, by the job and its head.

    The head is frozen and draws nothing, no defence changes what crosses, and the codec packs a sample alone.
    Samples with lengths of their own are padded with others each time: their values have other shapes.
    A data set that gives other samples each time is not seen here: its rows are just never found again.
    """
    return (
        spec.link.cache
        and spec.epochs > 1
        and head.fixed
        and not head.segment.has_random
        and not spec.defended
        and spec.model.max_length is None
        and all(parse_codec(name).rowwise for name in spec.link.codecs["activations"])
    )
