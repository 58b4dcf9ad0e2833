"""A device's hand-in at the end of a round: its body's part and, where they are averaged, its ends.

Ends come from a device and are hostile bytes: their names, shapes and types are the job's, every number is
finite, and their norm is bounded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from broker.protocol import messages as m
from spliteasy.errors import DataError, StoreError
from spliteasy.fleet.handover import CODE_BYTES
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.parts import averaged_end, like_of_optimizer
from spliteasy.fleet.record import RoundRecord
from spliteasy.fleet.sealed import CHECK_WORDS, added_up
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.job import Job
from spliteasy.training.segment_trainer import SegmentTrainer, all_finite

SEALED = "sealed"
"""The name of a device's sealed ends, and of their sum."""
_OF_OPTIMIZERS = 3
"""Optimizers keep at most so many tensors of a weight that are as large as the weight."""
_HEADER_BYTES = 512
"""The most that the names, shapes and types of a weight and what optimizers keep of it take in a handover."""


def contribution(body: Mapping[str, Tensor], job: Job, request: m.Ready) -> bytes:
    """Return the bytes that a device's part in the mean is taken from: the same for the same tensors.

    Raises DataError for ends that are not those of the job, or not finite.
    """
    if not all_finite([tensor for tensor in body.values() if tensor.is_floating_point()]):
        raise DataError(
            "the body that the device trained has numbers that are not finite; it can't be averaged",
            hint="lower the learning rate, or clip the gradients ([clip] max_norm)",
        )
    return tensors_to_bytes({**body, **checked_ends(job, request)})


def mean_bytes(job: Job, record: RoundRecord, bodies: Mapping[str, bytes]) -> bytes:
    """Return the mean of what the record's participants handed in; where one hands over, just that.

    Raises StoreError where it is something else than the record names.
    """
    parts, sealed = {}, list[Tensor]()
    for device, handed in record.participants.items():
        tensors = handed_in(bodies, device, handed.digest, record.number)
        if job.spec.fleet.hands_over:
            return bodies[device]
        if SEALED in tensors:
            sealed.append(tensors.pop(SEALED))
        parts[device] = record.weights[device], tensors
    mean = weighted_mean(parts)
    if sealed:
        mean[SEALED] = added_up(sealed)
    return tensors_to_bytes(mean)


def handed_in(bodies: Mapping[str, bytes], device: str, digest: str, number: int) -> dict[str, Tensor]:
    """Return what a device handed in for that round or window. Raises StoreError where it is something
    else.
    """
    if digest_of_contribution(bodies[device]) != digest:
        raise StoreError(f"what {device} handed in for round {number} is not what the record names")
    return tensors_from_bytes(bodies[device])


def digest_of_contribution(body: bytes) -> str:
    """64 hexadecimal digits that name what a device handed in, or a mean."""
    return hashlib.sha256(body).hexdigest()


def checked_ends(job: Job, request: m.Ready) -> dict[str, Tensor]:
    """Return the ends that the request carries, by name. Raises DataError."""
    fleet = job.spec.fleet
    leave = fleet.ends_leave and request.whole
    expected = expected_ends(job) if leave else {}
    if fleet.seals and leave:
        sealed = _sealed_handover if fleet.hands_over else _sealed_numbers
        return {SEALED: sealed(request, expected)}
    sent = dict(zip(request.names, request.values, strict=False))
    if len(sent) != len(request.names) or len(request.names) != len(request.values):
        raise DataError(f"{len(request.values)} tensors arrived for {len(request.names)} names")
    if lacking := sorted(set(expected) - set(sent)):
        raise DataError(f"the device's ends lack {lacking[0]}")
    tensors: dict[str, Tensor] = {}
    for name, value in sent.items():
        like = expected[name] if name in expected else like_of_optimizer(name, expected, job.spec)
        if like is None:
            raise DataError(f"the job has no tensor {name[:60]!r} to average")
        if not isinstance(value, Tensor) or value.shape != like.shape or value.dtype != like.dtype:
            raise DataError(f"{name[:60]} is not a tensor of {like.dtype} with shape {tuple(like.shape)}")
        tensors[name] = value
    _check_numbers(tensors, fleet.max_norm)
    return tensors


def _sealed_handover(request: m.Ready, expected: Mapping[str, Tensor]) -> Tensor:
    """Return what a device hands over to the next one: nothing can be told of it but its size."""
    value = _only_sealed(request)
    most = CODE_BYTES + sum(
        (1 + _OF_OPTIMIZERS) * (tensor.nbytes + _HEADER_BYTES) + 2 * len(name.encode())
        for name, tensor in expected.items()
    )
    if value.dtype != torch.uint8 or value.dim() != 1 or not CODE_BYTES < len(value) <= most:
        raise DataError(
            f"a sealed handover of this job has {most} bytes at most, not {list(value.shape)} of "
            f"{value.dtype}"
        )
    return value


def _only_sealed(request: m.Ready) -> Tensor:
    value = request.values[0] if len(request.values) == 1 else None
    if request.nonce is None or request.names != (SEALED,) or not isinstance(value, Tensor):
        raise DataError("sealed ends were expected, and the device sent others")
    return value


def _sealed_numbers(request: m.Ready, expected: Mapping[str, Tensor]) -> Tensor:
    """Return sealed ends that are added up: of the right length, which is all that can be told of them."""
    value = _only_sealed(request)
    count = sum(tensor.numel() for tensor in expected.values()) + CHECK_WORDS
    if value.dtype != torch.int64 or tuple(value.shape) != (count,):
        raise DataError(
            f"sealed ends are {count} numbers of int64, not {tuple(value.shape)} of {value.dtype}"
        )
    return value


def expected_ends(job: Job) -> dict[str, Tensor]:
    """Return tensors of the ends' shapes and types, by name; their values mean nothing."""
    segments = {"head": job.head} if job.tail is None else {"head": job.head, "tail": job.tail}
    found: dict[str, Tensor] = {}
    for role, segment in segments.items():
        trainer = SegmentTrainer(segment.spawn(), job.spec, device="", role=role)
        part = averaged_end(trainer, job.spec.fleet)
        found |= {f"{role}/{name}": tensor for name, tensor in part.items()}
    return found


def _check_numbers(tensors: Mapping[str, Tensor], max_norm: float) -> None:
    floating = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    if not all_finite(floating):
        raise DataError("the device's ends have numbers that are not finite; they can't be averaged")
    norm = math.sqrt(sum(float(tensor.to(torch.float64).square().sum()) for tensor in floating))
    if norm > max_norm:
        raise DataError(
            f"the device's ends have the norm {norm:.3g}, and the job takes {max_norm:g} at most",
            hint="raise fleet.max_norm in the job, if the weights are meant to be that large",
        )
