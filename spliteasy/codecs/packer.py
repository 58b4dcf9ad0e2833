"""The values of a cut as they travel: packed by the job's codecs, with error feedback as part of the state.

A `Packer` belongs to one side of one session. What error feedback holds back counts only once the step
took effect: packing again, after an abort, begins from what was held before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spliteasy.codecs import Codec, Meta, parse_codec
from spliteasy.errors import DataError, WireError
from spliteasy.graph.document import Value, ValueSpec
from spliteasy.runtime.randomness import seed_of

PLAIN = "fp32"
"""The codec under which values travel as they are."""

FEEDBACK_PREFIX = "feedback/"
KEPT_SIZES = 2
"""Error feedback holds remainders of this many sizes of a value: of full batches, and of the newest other."""
Place = Literal["activations", "gradients"]
PLACES: tuple[Place, ...] = ("activations", "gradients")
Expected = tuple[tuple[int, ...], torch.dtype] | None
"""Shape and dtype of a tensor; None for an integer."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Values for the wire. `packing` has each value's part count and its codec's meta; none under fp32."""

    values: tuple[Value | None, ...]
    codec: str = PLAIN
    packing: tuple[tuple[int, Meta], ...] = ()
    reply_codec: str | None = None
    """The codec that the answer has to be packed by, where the job leaves that open."""

    @property
    def nbytes(self) -> int:
        return bytes_of(self.values)


class Packer:
    """Packs one side's outgoing values; holds what error feedback keeps back."""

    def __init__(self, codecs: Mapping[Place, Sequence[str]], *seed_parts: str | int) -> None:
        """`codecs` that each place may use, as `parse_codec` takes them; `seed_parts` tell this side and
        session apart."""
        self._codecs = {place: {name: parse_codec(name) for name in names} for place, names in codecs.items()}
        self._seed_parts = seed_parts
        self._memory: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor | None] = {}
        """The remainders that are held back once the step takes effect; None says that nothing is held back
        any more."""

    def pack(
        self,
        place: Place,
        values: Sequence[Value | None],
        *,
        step: int,
        micro: int = 0,
        codec: str | None = None,
    ) -> Packed:
        """Pack for `step`. Gradients are rounded without bias, by a seed of this place.

        `codec` is one of the place's; None: the only one. What error feedback has held back goes with the
        next values under whatever codec: one without feedback leaves nothing held back.
        Raises DataError where the job does not allow `codec`.
        """
        coder = self._allowed(place, codec)
        out: list[Value | None] = []
        packing: list[tuple[int, Meta]] = []
        for index, value in enumerate(values):
            if not isinstance(value, Tensor):
                out.append(value)
                packing.append((1, {}))
                continue
            key = f"{place}/{micro}/{index}/{'x'.join(map(str, value.shape))}"
            seed = seed_of(*self._seed_parts, step, micro, index) if place == "gradients" else None
            tensor, held = value.detach(), self._memory.get(key)
            if held is not None and not coder.feedback:
                tensor, held = tensor + held, None
                self._pending[key] = None
            if coder.name == PLAIN:
                out.append(tensor)
                continue
            encoded = coder.encode(tensor, seed=seed, memory=held)
            if encoded.memory is not None:
                self._pending[key] = encoded.memory
            out.extend(encoded.parts)
            packing.append((len(encoded.parts), encoded.meta))
        return Packed(tuple(out), coder.name, () if coder.name == PLAIN else tuple(packing))

    def feedback(self, place: Place) -> bool:
        """Return whether the packed bytes at that place may depend on what was packed there before."""
        return any(codec.feedback for codec in self._codecs[place].values())

    def pack_evaluation(self, values: Sequence[Value | None], *, codec: str | None = None) -> Packed:
        """Pack activations of an evaluation: no memory is touched, so error feedback sends them whole."""
        coder = self._allowed("activations", codec)
        if coder.name == PLAIN or coder.feedback:
            return Packed(tuple(values))
        return Packer({"activations": (coder.name,)}).pack("activations", values, step=0)

    def apply(self) -> None:
        """The step took effect: what was held back in it counts."""
        for key, memory in self._pending.items():
            if memory is None:
                self._memory.pop(key, None)
            else:
                self._keep(key, memory)
        self._pending.clear()

    def _keep(self, key: str, memory: Tensor) -> None:
        """Hold a remainder back. Of the value's other sizes only the largest's is held on to.

        An epoch has full batches and a smaller last one. A device that sends ever other sizes would
        otherwise fill the memory with one remainder for each.
        """
        value = key.rpartition("/")[0]
        others = [held for held in self._memory if held != key and held.rpartition("/")[0] == value]
        for held in sorted(others, key=lambda held: self._memory[held].numel())[:-1]:
            del self._memory[held]
        self._memory[key] = memory

    def feedback_bytes(self, place: Place, expected: Iterable[Expected]) -> int:
        """Return the most that error feedback takes for values of these shapes, which are those of a full
        batch: remainders of two sizes of each, and those of the open step."""
        return (KEPT_SIZES + 1) * bytes_expected(expected) if self.feedback(place) else 0

    def abort(self) -> None:
        """The step did not: forget what was held back in it."""
        self._pending.clear()

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the remainders that are held back after the last step, by name."""
        return {FEEDBACK_PREFIX + key: tensor.clone() for key, tensor in self._memory.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, out of a larger state."""
        self._pending.clear()
        self._memory = {
            name[len(FEEDBACK_PREFIX) :]: tensor.clone()
            for name, tensor in state.items()
            if name.startswith(FEEDBACK_PREFIX)
        }

    def _allowed(self, place: Place, codec: str | None) -> Codec:
        codecs = self._codecs[place]
        if codec is None and len(codecs) == 1:
            (codec,) = codecs
        if codec not in codecs:
            asked = "no codec" if codec is None else repr(codec[:40])
            raise DataError(f"{asked} asked for {place}, the job allows {', '.join(codecs)}")
        return codecs[codec]


def unpack(
    packed: Packed, expected: Sequence[Expected], *, codecs: Sequence[str]
) -> tuple[Value | None, ...]:
    """The values again, of the expected shapes and dtypes.

    `codecs` are those that the job allows: another is refused, but for plain values (an evaluation's).
    Raises DataError. What comes back under fp32 is as it arrived: the caller checks it.
    """
    if packed.codec == PLAIN and not packed.packing:
        return packed.values
    if packed.codec not in codecs:
        raise DataError(f"values packed by {packed.codec[:40]!r}, the job says {' or '.join(codecs)}")
    if len(packed.packing) != len(expected) or sum(n for n, _ in packed.packing) != len(packed.values):
        raise DataError(f"{len(packed.packing)} packed values arrived at a cut of {len(expected)}")
    decoder = parse_codec(packed.codec)
    values: list[Value | None] = []
    start = 0
    for (count, meta), form in zip(packed.packing, expected, strict=True):
        parts, start = packed.values[start : start + count], start + count
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if form is None or not tensors:
            values.append(parts[0] if len(parts) == 1 else None)
        elif len(tensors) != len(parts):
            raise DataError("a packed tensor has parts that are no tensors")
        else:
            try:
                values.append(decoder.decode(tensors, meta, shape=form[0], dtype=form[1]))
            except WireError as error:
                raise DataError(error.message, hint=error.hint) from error
    return tuple(values)


def expected_of(specs: Sequence[ValueSpec], samples: int, length: int = 0) -> list[Expected]:
    """Return the shapes and dtypes that a cut of `specs` carries for a batch of `samples`, padded to
    `length` where lengths are free."""
    return [
        None if spec.is_int else (_bounded(spec.shape_for(samples, length)), spec.torch_dtype)
        for spec in specs
    ]


def bytes_of(values: Iterable[Value | None]) -> int:
    """Return the bytes of the tensors among the values."""
    return sum(value.nbytes for value in values if isinstance(value, Tensor))


def bytes_expected(expected: Iterable[Expected]) -> int:
    """Return the bytes of tensors with these shapes and dtypes."""
    return sum(math.prod(form[0]) * form[1].itemsize for form in expected if form is not None)


def expected_like(values: Sequence[Value]) -> list[Expected]:
    """Return the shapes and dtypes of the gradients of `values`."""
    return [(tuple(v.shape), v.dtype) if isinstance(v, Tensor) else None for v in values]


MAX_ELEMENTS = 1 << 31


def _bounded(shape: tuple[int, ...]) -> tuple[int, ...]:
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise DataError(f"a batch of that size would have tensors of shape {shape}")
    return shape
