"""The engine seam: who computes bodies. What is asked of an engine is a record; the result has its type.

An engine holds bodies: weights, buffers, optimizer, what codecs hold back, and at most one open step on top.
A body is named by its handle and lives as long as somebody holds that. Values come and go packed, as they
travel, so that an engine decides where they are unpacked, and may gather the requests of several bodies.

Of one body one request is asked at a time. `tests/engine/` is the contract that every engine passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from torch import Tensor

from broker.protocol import messages as m
from server_worker.action import Action
from spliteasy.codecs.packer import Packed
from spliteasy.fleet.record import RoundRecord
from spliteasy.job import Job
from spliteasy.training.private_trainer import BodyNoise

R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")

DIGEST = "moved-"
"""Begins a step's digest, and says what that is of: the gradients and all of the state that moves. Earlier
versions wrote digests of other tensors."""


class Body(Protocol):
    """A body that an engine holds. Only the engine that opened it knows more of it."""

    @property
    def replica(self) -> str:
        """The name of the replica that the body belongs to, for messages to people."""
        ...

    @property
    def state_bytes(self) -> int:
        """Bytes of its weights, buffers and optimizer, and the most that error feedback may hold back.

        What it shares with other bodies is not counted.
        """
        ...

    @property
    def shared_bytes(self) -> Mapping[str, int]:
        """Return the bytes of the frozen tensors that it shares with other bodies, by digest."""
        ...


class EngineRequest(Action[R]):
    """Something that an engine computes."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class LoadProgram(EngineRequest[Job]):
    """Build the programs of a job version. Raises PortableError, NeedsNewer."""

    manifest: bytes
    parts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Probe(EngineRequest[str]):
    """Tell in one line what decides the bits of this job here, with the digest of a step at its end.

    Two engines whose lines are not `alike` may give other bits for the same step.
    """

    job: Job


@dataclass(frozen=True, slots=True)
class OpenBody(EngineRequest[Body]):
    """Make a body in the job's initial state, at step 0. Its random layers draw what is `device`'s."""

    job: Job
    replica: str
    device: str


@dataclass(frozen=True, slots=True)
class Restore(EngineRequest[None]):
    """Take over a snapshot of `step`. Raises ValueError where it is none of this body's."""

    body: Body
    blobs: Mapping[str, bytes]
    step: int


@dataclass(frozen=True, slots=True)
class TakeSnapshot(EngineRequest[dict[str, bytes]]):
    """The whole state after the last step, one blob a tensor; an open step is not in it."""

    body: Body


@dataclass(frozen=True, slots=True)
class ReadWeights(EngineRequest[dict[str, Tensor]]):
    """A copy of the weights and buffers, by their names in the user's model."""

    body: Body


@dataclass(frozen=True, slots=True)
class ForwardDone:
    """The outputs of a forward, as they travel."""

    outputs: Packed
    """Empty where the loss is computed here: then nothing goes back before the gradients."""
    output_bytes: int
    """The size in bytes of the outputs as they are, unpacked."""
    share: float
    """The weight of the micro-batch's loss in its batch's, where the loss is computed here; else 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward(EngineRequest[ForwardDone]):
    """Run the training graph on the next micro-batch of step + 1; micro-batch 0 begins that step again.

    Raises DataError where the values do not fit the body, or count for more than all of the batch.
    """

    body: Body
    micro: int
    samples: int
    batch: int
    """Samples of all the step's micro-batches."""
    length: int = 0
    """The length to which the samples are padded, where they have one of their own; else 0."""
    values: Packed
    targets: tuple[Tensor, ...] = ()
    """The targets that the loss compares the outputs with, where it is computed here."""
    counted: float | None = None
    """Labelled elements of all of them, which the loss's mean is over; None: it is over samples."""
    codec: str | None = None
    """The codec of the outputs; None is the only codec that the job names."""


@dataclass(frozen=True, slots=True)
class BackwardDone:
    """The result of a backward, for the device."""

    gradients: Packed
    """The gradients of the activations, as they travel; None for each once the step is known to be void."""
    loss: float | None
    """The loss, where it was computed here and an element of the micro-batch has a label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward(EngineRequest[BackwardDone]):
    """Run the backward of the oldest forward that has had none.

    Raises DataError where the gradients do not fit, OutputsMismatch where they belong to other outputs than
    this engine gave, and NotFinite where a result is not finite and the job does not let such a step pass.
    """

    body: Body
    step: int
    gradients: Packed | None
    """The gradients of the outputs; None where the loss is computed here, since they follow from it."""
    outputs: str | None = None
    """The digest of the outputs that the gradients belong to, where the device says it."""
    codec: str | None = None
    """The codec of the activations' gradients; None is the only codec that the job names."""
    noise: BodyNoise | None = None
    """The source of the noise on the body's gradients, where the job trains by DP-SGD."""


@dataclass(frozen=True, slots=True)
class StepDone:
    """An optimizer step of a body."""

    digest: str
    """The digest of the gradients of all micro-batches, as they travel, and of the state after the step."""
    skipped: bool
    """A number of the step was not finite, and the job lets such a step pass without effect."""


@dataclass(frozen=True, slots=True)
class Step(EngineRequest[StepDone]):
    """Close the open step, after the backwards of all its forwards: take the optimizer step.

    Raises NotFinite where a gradient is not finite and the job does not let such a step pass.
    """

    body: Body


@dataclass(frozen=True, slots=True)
class Abort(EngineRequest[None]):
    """Forget the open step: the body is what it was before its first forward."""

    body: Body


@dataclass(frozen=True, slots=True)
class Evaluate(EngineRequest[Packed]):
    """The outputs in evaluation mode, on the state after the last step; nothing of the body moves.

    Raises DataError where the values do not fit the body.
    """

    body: Body
    samples: int
    values: Packed
    codec: str | None = None
    length: int = 0
    """The length to which the samples are padded, where they have one of their own; else 0."""


@dataclass(frozen=True, slots=True)
class HandIn(EngineRequest[bytes]):
    """Make the bytes that a device hands in at the end of a round: its body's averaged part, and its ends.

    Raises DataError for ends that are not those of the job, and where a number of the body is not finite.
    """

    body: Body
    ready: m.Ready


@dataclass(frozen=True, slots=True)
class TakeMean(EngineRequest[bytes]):
    """The mean of what the record's participants handed in, by device; of one that hands over, just that.

    Raises StoreError where it is not what the record names.
    """

    job: Job
    record: RoundRecord
    bodies: Mapping[str, bytes]
    before: bytes = b""
    """A shared body before the window, which takes a step; empty: the initial one."""


@dataclass(frozen=True, slots=True)
class TakeEnds(EngineRequest[bytes]):
    """The mean of the ends of the devices that ended the record's round, where the body is shared.

    Raises StoreError where they are not what the record names.
    """

    job: Job
    record: RoundRecord
    bodies: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class RebaseDone:
    """A step that went on from a mean."""

    digest: str
    ends: dict[str, Tensor]
    """The means of head and tail; empty where these stay on the device."""


@dataclass(frozen=True, slots=True)
class Rebase(EngineRequest[RebaseDone]):
    """Take a step that goes on from the mean of that round; no bytes stand for the initial model."""

    body: Body
    round: int
    mean: bytes
    scheduled: int | None = None
    """The number of steps that the learning rate's schedule goes on from; None: the device's own."""
    ends: bytes = b""
    """The mean of the ends, where it is not in `mean`."""


@dataclass(frozen=True, slots=True)
class Together(EngineRequest[R]):
    """Several requests, one after the other in one go. Where one fails, those after it are not begun.

    Made by `together`, which knows the types of the results.
    """

    requests: tuple[EngineRequest[Any], ...]


@overload
def together(first: EngineRequest[A], second: EngineRequest[B], /) -> Together[tuple[A, B]]: ...
@overload
def together(
    first: EngineRequest[A], second: EngineRequest[B], third: EngineRequest[C], /
) -> Together[tuple[A, B, C]]: ...
def together(*requests: EngineRequest[Any]) -> Together[Any]:
    """The requests as one; its result has theirs, in order."""
    return Together(requests)


class Engine(Protocol):
    """Computes for a worker. Safe for concurrent use by asyncio tasks, for bodies that differ."""

    async def perform(self, request: EngineRequest[R]) -> R:
        """The result of the request, or what it raises: OutOfMemory, and what the request's record names.

        A request that failed leaves its body's open step as it may be: `Abort`, or a first forward again,
        puts that right. Cancelling the call does not stop what has begun.
        """
        ...
