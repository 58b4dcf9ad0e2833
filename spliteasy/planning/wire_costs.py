"""The costs of each value on the wire under a codec: bytes, and the time to pack and unpack it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spliteasy.codecs import Codec, parse_codec
from spliteasy.planning.costs import Tensors
from spliteasy.planning.flow import Flow
from spliteasy.planning.whole_model import whole_segment
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.export import TracedModel
from spliteasy.training.losses import LossFunction
from spliteasy.training.segment_trainer import backward_from, tensors_of

PLAIN = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class WireCosts:
    """Per value of a `Flow`, for a whole batch. Seconds are for packing once and unpacking once, here."""

    activation_bytes: list[float]
    gradient_bytes: list[float]
    activation_s: list[float]
    gradient_s: list[float]


@dataclass(slots=True)
class _Packed:
    """A tensor packed once: bytes on the wire for each byte of the tensor, seconds for each byte."""

    bytes_ratio: float = 1.0
    s_per_byte: float = 0.0


def plain_wire(flow: Flow, batch: int, length: int) -> WireCosts:
    """Tensors travel as they are. `length` is that of the samples, where it is free."""
    sizes = [float(value.spec.bytes_for(batch, length)) for value in flow.values]
    nothing = [0.0] * len(sizes)
    return WireCosts(activation_bytes=sizes, gradient_bytes=sizes, activation_s=nothing, gradient_s=nothing)


def packed_wire(
    traced: TracedModel,
    flow: Flow,
    loss: LossFunction,
    inputs: Tensors,
    targets: Tensors,
    *,
    batch: int,
    codecs: tuple[str, str],
) -> WireCosts:
    """Pack the values and gradients of one step on these inputs. `codecs`: of activations and gradients.

    What codecs make of data depends on the data: give inputs as the devices have them.
    """
    if codecs == (PLAIN, PLAIN):
        return plain_wire(flow, batch, traced.longest)
    activations, gradients = _packed_values(traced, flow, loss, inputs, targets, codecs)
    sizes = [value.spec.bytes_for(batch, traced.longest) for value in flow.values]
    packs = [(activations.get(v, _Packed()), gradients.get(v, _Packed())) for v in range(len(sizes))]
    return WireCosts(
        activation_bytes=[size * a.bytes_ratio for size, (a, _) in zip(sizes, packs, strict=True)],
        gradient_bytes=[size * g.bytes_ratio for size, (_, g) in zip(sizes, packs, strict=True)],
        activation_s=[size * a.s_per_byte for size, (a, _) in zip(sizes, packs, strict=True)],
        gradient_s=[size * g.s_per_byte for size, (_, g) in zip(sizes, packs, strict=True)],
    )


def _packed_values(
    traced: TracedModel,
    flow: Flow,
    loss: LossFunction,
    inputs: Tensors,
    targets: Tensors,
    codecs: tuple[str, str],
) -> tuple[dict[int, _Packed], dict[int, _Packed]]:
    """Return for each value its activation packed, and its gradient."""
    forth, back = (parse_codec(codec) for codec in codecs)
    sent = {v for place in flow.places for v in place.crossing}
    numbers = {value.op: v for v, value in enumerate(flow.values) if v in sent}
    activations: dict[int, _Packed] = {}
    gradients: dict[int, _Packed] = {}
    turn = iter([op for op in traced.train.ops if op in traced.train.live])

    def invoke(call: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        made = call(*args, **kwargs)
        number = numbers.get(next(turn))
        if number is not None:
            activations[number] = _pack(forth, made.detach(), None)
            if made.requires_grad:
                made.register_hook(partial(note, number))
        return made

    def note(number: int, gradient: Tensor) -> None:
        gradients[number] = _pack(back, gradient, 1)

    segment, _ = whole_segment(traced)
    with states_kept():
        outputs = segment.program.train(list(segment.tensors().values()), list(inputs), invoke=invoke)
        backward_from(loss(tensors_of(outputs), targets))
    return activations, gradients


@torch.no_grad()
def _pack(codec: Codec, tensor: Tensor, seed: int | None) -> _Packed:
    if not codec.packs(tuple(tensor.shape), tensor.dtype):
        return _Packed()
    codec.encode(tensor, seed=seed)
    began = time.perf_counter()
    encoded = codec.encode(tensor, seed=seed)
    codec.decode(encoded.parts, encoded.meta, shape=tensor.shape, dtype=tensor.dtype)
    seconds = time.perf_counter() - began
    return _Packed(encoded.nbytes / tensor.nbytes, seconds / tensor.nbytes)
