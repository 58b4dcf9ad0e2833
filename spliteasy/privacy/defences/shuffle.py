"""Tokens or patches cross in another order for each sample, and come back into their own on the device.

Only for bodies that treat all positions alike: attention without positions, layers that are applied to each
token, pooling over all of them. There the model computes what it computes without shuffling, but for the
order in which sums are added. The order is a function of the device's key and of the clean values, as noise
is. What a token itself tells of its place (an embedding of positions in the head) goes with it.

Patch shuffling: Yao et al., Privacy-preserving split learning via patch shuffling over transformers (ICDM
2022).
"""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.graph.segment import Segment
from spliteasy.privacy.defences.rows import is_batch_first
from spliteasy.privacy.numbers import fill
from spliteasy.runtime.generators import states_kept
from spliteasy.runtime.randomness import Key
from spliteasy.splitting.weightless import with_other_weights

SAMPLES = 4
"""Samples of the probe."""

_SEED = 2207
_SAME = 1e-3
"""The probe's tolerance, in units of the largest output: sums are added in another order."""


def drawn_order(key: Key, samples: int, tokens: int) -> Tensor:
    """A permutation of each sample's tokens: int64 [samples, tokens]."""
    places = torch.empty(samples, tokens, dtype=torch.float64)
    fill(places, "uniform", (0.0, 1.0), key)
    return places.argsort(dim=1, stable=True)


def shuffled(value: Tensor, order: Tensor) -> Tensor:
    """The tokens of `value` [samples, tokens, features] in that order; other values stay as they are."""
    if not _has_tokens(value.shape, order.shape[1]):
        return value
    return value.gather(1, order[:, :, None].expand(-1, -1, value.shape[2]))


def restored(value: Tensor, order: Tensor) -> Tensor:
    """Undo `shuffled`."""
    return shuffled(value, order.argsort(dim=1))


def tokens_of(head: Segment) -> int:
    """The number of tokens that a sample has at the first cut. Raises JobError where they are not tokens."""
    graphs = (head.program.document.train, head.program.document.eval)
    crossing = [graph.outputs[: graph.wire] for graph in graphs]
    if any(len(specs) != 1 or not _is_sequence(specs[0]) for specs in crossing):
        raise JobError(
            "[privacy] shuffle_tokens needs one value of [batch, tokens, features] at the first cut, and "
            f"{', '.join(f'{s.name} {_shape(s)}' for s in crossing[0])} crosses it",
            hint="cut behind the layer that makes tokens or patches, or leave shuffle_tokens out",
        )
    (spec,) = crossing[0]
    return int(spec.shape[1])  # type: ignore[arg-type]


def check_shuffle(head: Segment, body: Segment, tail: Segment | None) -> None:
    """Try that the body treats all positions alike. Raises JobError where it does not."""
    tokens = tokens_of(head)
    specs = body.output_values[: body.n_wire]
    for spec in specs:
        if not spec.is_int and _has_tokens(spec.shape, tokens) and tail is None:
            raise JobError(
                f"[privacy] shuffle_tokens: {spec.name} leaves the model with an order of tokens, and with "
                "one cut the worker computes the loss in an order that it does not know",
                hint="name two cuts, or leave shuffle_tokens out",
            )
    with states_kept():
        generator = torch.Generator().manual_seed(_SEED)
        (given,) = (
            torch.randn(spec.shape_for(SAMPLES), generator=generator, dtype=spec.torch_dtype)
            for spec in body.input_values
        )
        order = torch.rand(SAMPLES, tokens, generator=generator).argsort(dim=1)
        for training in (False, True):
            if not (training and body.has_random):
                _try(with_other_weights(body).train(training), given, order)


@torch.no_grad()
def _try(body: Segment, given: Tensor, order: Tensor) -> None:
    plain = [x for x in body.forward(given)[: body.n_wire] if isinstance(x, Tensor)]
    mixed = [x for x in body.forward(shuffled(given, order))[: body.n_wire] if isinstance(x, Tensor)]
    for before, after in zip(plain, mixed, strict=True):
        back = restored(after, order).double()
        room = _SAME * float(before.double().abs().max().clamp_min(1e-6))
        if float((before.double() - back).abs().max()) > room:
            raise JobError(
                "[privacy] shuffle_tokens: the body computes something else when a sample's tokens come in "
                "another order (a mask, positions, a convolution or a recurrence along them)",
                hint="put what knows of positions into the head, or leave shuffle_tokens out",
            )


def _is_sequence(spec: ValueSpec) -> bool:
    return (
        not spec.is_int
        and spec.torch_dtype.is_floating_point
        and len(spec.shape) == 3
        and is_batch_first(spec)
        and isinstance(spec.shape[1], int)
        and spec.shape[1] > 1
    )


def _has_tokens(shape: object, tokens: int) -> bool:
    assert isinstance(shape, tuple)
    return len(shape) == 3 and shape[1] == tokens


def _shape(spec: ValueSpec) -> str:
    return "an integer" if spec.is_int else "[" + ", ".join(["batch", *map(str, spec.shape[1:])]) + "]"
