"""A body that a worker has loaded: the engine's handle, and what belongs to the open step.

The engine computes; here is kept which requests the open step was computed from, and what they gave, so that
each answer can be given again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import orjson
import torch
from torch import Tensor

from broker import decode, decode_tensor, encode_tensor
from broker.protocol import messages as m
from server_worker.action import Steps
from server_worker.engine.base import (
    DIGEST,
    Abort,
    Backward,
    BackwardDone,
    Body,
    Evaluate,
    Forward,
    ForwardDone,
    OpenBody,
    ReadWeights,
    Rebase,
    Restore,
    Step,
    StepDone,
    TakeSnapshot,
    together,
)
from server_worker.replica.kept_state import holds_state, unpack_state
from server_worker.replica.request_checks import check_evaluation, check_forward, check_size
from server_worker.store import LogEntry
from spliteasy.codecs.packer import Packed, bytes_expected, bytes_of, expected_of
from spliteasy.errors import DataError, ReplayMismatch, SplitEasyError
from spliteasy.job import Job
from spliteasy.job.micro_batches import micro_sizes
from spliteasy.training.private_trainer import BodyNoise
from spliteasy.training.segment_trainer import REBASES_KEY, tensors_of

ROUND_KEY = "fleet/round"
"""The name of what a snapshot keeps of the round, beside the body's tensors."""


@dataclass(frozen=True, slots=True)
class MicroResult:
    """The result of one micro-batch's backward: its activations' gradients and, if known here, its loss."""

    answers: str
    """The request that its GRADIENT answers."""
    gradients: Packed
    loss: float | None
    share: float
    """The weight of its loss in the batch's."""
    kept: bool | None = None
    """True where the worker keeps its rows; None where its FORWARD did not ask for that."""


@dataclass(frozen=True, slots=True)
class RoundMean:
    """The mean that a step goes on from, and the record that decided it."""

    answers: str
    """The request that its MEAN answers."""
    round: int
    record: str
    ends: dict[str, Tensor]
    """The means of head and tail; empty where these stay on the device."""
    initial: bool
    """No mean was taken yet: the initial ends take its place."""
    kept: bool
    """The ends stay as they are: the device is in the middle of its round."""
    opened: int
    """The record that began the round under way."""
    drawn: int
    """The number of devices that were drawn for the next round."""
    sealed: m.SealedSum | None
    """The devices whose sum it is, where the ends were sealed."""
    scheduled: int | None
    """The number of steps that the learning rate's schedule goes on from; None: each device's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAbout:
    """The facts that go with a mean: the log keeps them beside the mean's bytes."""

    round: int
    opened: int
    record: str
    drawn: int
    ends: Literal["mean", "initial", "kept"]
    """The ends go on from a mean or as they began, or stay as they are."""
    sealed: m.SealedSum | None = None
    scheduled: int | None = None

    def to_json(self) -> bytes:
        sealed = None if self.sealed is None else self.sealed.model_dump(mode="json")
        return orjson.dumps({**asdict(self), "sealed": sealed})

    @classmethod
    def from_json(cls, line: bytes) -> RoundAbout:
        said = orjson.loads(line)
        sealed = said.pop("sealed")
        return cls(**said, sealed=None if sealed is None else m.SealedSum.model_validate(sealed))


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step of the body: an optimizer step, or one that goes on from a mean."""

    micros: tuple[MicroResult, ...]
    digest: str
    """The digest of the gradients of all of them, and of the state after the step."""
    skipped: bool = False
    """A gradient was not finite, and the job lets such a step pass without effect."""
    mean: RoundMean | None = None
    """There where the step goes on from a mean."""


class LoadedBody:
    """A body after step `step`, and at most one open step on top.

    The open step's micro-batches are computed in order: `forwarded` forwards, `returned` backwards so far.
    """

    def __init__(self, job: Job, replica: str, body: Body) -> None:
        self.job = job
        self.replica = replica
        self.body = body
        self.step = 0
        self._batch = 0
        self._forwards: list[str] = []
        """The FORWARDs of the open step, by their ids."""
        self._kept: list[bool | None] = []
        """The answers to whether the worker keeps their rows; None where a FORWARD did not ask."""
        self._open: dict[int, ForwardDone] = {}
        """By micro-batch, what the forwards gave whose backward was not computed."""
        self._results: list[MicroResult] = []
        self.round = 0
        """The round that the device trains for; 0: it has not begun with the others."""
        self.samples = 0
        """Samples that the body was trained on in this round."""
        self.round_began = 0
        """Optimizer steps taken before this round."""
        self.opened = 0
        """The record that began the round; it is the one before `round`, but where the body is shared."""
        self.round_samples = 0
        """Samples of all windows of the round, where the body is shared; else those of the round."""
        self._rebases = 0
        """Steps that went on from a mean."""

    @property
    def taken(self) -> int:
        """Return how many optimizer steps were taken."""
        return self.step - self._rebases

    @property
    def forwarded(self) -> int:
        return len(self._forwards)

    @property
    def returned(self) -> int:
        return len(self._results)

    @property
    def micros(self) -> int:
        """The number of micro-batches of the open step."""
        return len(micro_sizes(self._batch, self.job.spec.micro_batches))

    def forward_id(self, micro: int) -> str | None:
        """Return the FORWARD of the open step's micro-batch."""
        return self._forwards[micro] if micro < len(self._forwards) else None

    def outputs(self, micro: int) -> Packed:
        """Return what the forward of a micro-batch sends down, until its backward was computed."""
        return self._open[micro].outputs

    def kept(self, micro: int) -> bool | None:
        """Return whether the worker keeps the rows of the open step's micro-batch; None: it need not."""
        return self._kept[micro] if micro < len(self._kept) else None

    def result(self, micro: int) -> MicroResult:
        """Return the result of the backward of the open step's micro-batch."""
        return self._results[micro]

    def knows(self, request: str) -> bool:
        """Return whether the open step was computed from that request."""
        return request in self._forwards or any(result.answers == request for result in self._results)

    # memory

    @property
    def state_bytes(self) -> int:
        return self.body.state_bytes

    @property
    def shared_bytes(self) -> Mapping[str, int]:
        """Return the bytes of what it shares with other bodies, by digest."""
        return self.body.shared_bytes

    @property
    def open_bytes(self) -> int:
        """Bytes that the open step takes; it is counted whole from its first micro-batch on."""
        return self.step_bytes if self._forwards else 0

    @property
    def step_bytes(self) -> int:
        """Bytes that a step takes beside the state, until its last backward."""
        costs = self.job.body.program.costs.train_bytes
        if self.job.spec.single:
            costs += self.job.loss_costs.train_bytes  # labels are shared, and the loss is computed here
        return costs * self.job.spec.micro_batches

    @property
    def eval_bytes(self) -> int:
        """Bytes that an evaluation takes beside the state."""
        return self.job.body.program.costs.eval_bytes

    def check(self, request: m.Forward | m.Backward | m.Eval, raw_bytes: int) -> None:
        """Check that the request is of the sizes that the job says, before anything is taken for it.

        Raises DataError where it claims more samples than the job's batch, is no micro-batch of it, or is
        larger than what it may carry.
        """
        if isinstance(request, m.Eval):
            check_evaluation(self.job, request, raw_bytes)
        elif isinstance(request, m.Forward):
            check_forward(self.job, request, raw_bytes)
        elif request.micro in self._open:
            # Where what it belongs to is not here, it waits, within the limits for that.
            check_size(request, raw_bytes, self._open[request.micro].output_bytes)

    # what the engine does

    def restore(self, blobs: Mapping[str, bytes], step: int) -> Steps[None]:
        """Take over a snapshot of `step`; an empty one is the job's initial state."""
        if blobs:
            own = {name: decode_tensor(blobs[name]) for name in (ROUND_KEY, REBASES_KEY) if name in blobs}
            if ROUND_KEY in own:
                self.round, self.samples, self.round_began, self.opened, self.round_samples = own[
                    ROUND_KEY
                ].tolist()
            self._rebases = int(own[REBASES_KEY]) if REBASES_KEY in own else 0
            state = {name: blob for name, blob in blobs.items() if name != ROUND_KEY}
            yield from Restore(self.body, state, step)
        self.step = step

    def snapshot(self) -> Steps[dict[str, bytes]]:
        """Return the state after `step`, one blob a tensor."""
        state = yield from TakeSnapshot(self.body)
        if not self.job.spec.fleet.has_rounds:
            return state
        about = torch.tensor([self.round, self.samples, self.round_began, self.opened, self.round_samples])
        return {**state, ROUND_KEY: encode_tensor(about)}

    def weights(self) -> Steps[dict[str, Tensor]]:
        """A copy of the weights and buffers."""
        return (yield from ReadWeights(self.body))

    def forward(self, request: m.Forward, kept: bool | None = None) -> Steps[StepResult | None]:
        """Compute the next micro-batch's forward of step + 1; micro-batch 0 begins the step again.

        `kept` says whether the worker keeps its rows, for the answer.

        With shared labels its backward follows from the loss, and the last one takes the step. Raises
        DataError where the values do not fit the body, or the micro-batch not the batch.
        """
        if request.micro == 0:
            self._forget()
            self._batch = request.batch or request.samples
        self._check_micro(request)
        first_target = len(request.values) - request.targets
        asked = Forward(
            body=self.body,
            micro=request.micro,
            samples=request.samples,
            length=request.length or 0,
            batch=self._batch,
            values=m.packed_in(request, last=first_target),
            targets=tensors_of(request.values[first_target:]),
            counted=request.counted,
            codec=request.reply_codec,
        )
        if not request.targets:
            self._opened(request, (yield from asked), kept)
            return None
        returned = Backward(body=self.body, step=request.step, gradients=None, codec=request.reply_codec)
        if request.micro + 1 < self.micros:
            forwarded, back = yield from together(asked, returned)
            self._opened(request, forwarded, kept)
            self._closed(request.request, back, kept)
            return None
        forwarded, back, step = yield from together(asked, returned, Step(self.body))
        self._opened(request, forwarded, kept)
        self._closed(request.request, back, kept)
        return self._stepped(step)

    def backward(self, request: m.Backward) -> Steps[StepResult | None]:
        """Compute the next backward with the device's gradients; the last one takes the step."""
        asked = Backward(
            body=self.body,
            step=request.step,
            gradients=m.packed_in(request),
            outputs=request.outputs,
            codec=request.reply_codec,
            noise=_noise_in(request),
        )
        if self.returned + 1 < self.micros:
            self._closed(request.request, (yield from asked))
            return None
        back, step = yield from together(asked, Step(self.body))
        self._closed(request.request, back)
        return self._stepped(step)

    def rebase(
        self, request: m.Ready, about: RoundAbout, mean: bytes, ends: bytes = b""
    ) -> Steps[StepResult]:
        """Take a step that goes on from the mean of a round, or from the initial model (no bytes).

        `ends`: the mean of the ends, where it is not in `mean`.
        """
        self._forget()
        done = yield from Rebase(self.body, about.round, mean, about.scheduled, ends)
        self.step += 1
        self._rebases += 1
        self.round, self.samples, self.round_began = about.round + 1, 0, self.taken
        if about.ends != "kept" or about.opened != self.opened:
            self.round_samples = 0
        self.opened = about.opened
        result = RoundMean(
            answers=request.request,
            round=about.round,
            record=about.record,
            ends=done.ends,
            initial=about.ends == "initial",
            kept=about.ends == "kept",
            opened=about.opened,
            drawn=about.drawn,
            sealed=about.sealed,
            scheduled=about.scheduled,
        )
        return StepResult((), done.digest, mean=result)

    def evaluate(self, request: m.Eval) -> Steps[Packed]:
        """The body's outputs in evaluation mode."""
        return (
            yield from Evaluate(
                self.body,
                request.samples,
                m.packed_in(request),
                request.reply_codec,
                length=request.length or 0,
            )
        )

    def abort(self) -> Steps[None]:
        """Forget the open step."""
        self._forget()
        yield from Abort(self.body)

    def write_bytes(self, request: m.Forward) -> tuple[int, int]:
        """Return the bytes of the state and about those of the requests of the step that `request` begins."""
        spec, body, length = self.job.spec, self.job.body, request.length or 0
        whole = request.batch or request.samples
        sent = bytes_of(request.values) * whole // request.samples
        if not spec.single:
            given = bytes_expected(expected_of(body.input_values, whole, length))
            taken = bytes_expected(expected_of(body.output_values[: body.n_wire], whole, length))
            sent += sent * taken // max(1, given)
        return self.state_bytes, sent

    def keep_state(self, entry: LogEntry) -> Steps[None]:
        """Go on from the state that an entry holds."""
        self._forget()
        yield from self.restore(unpack_state(entry), entry.step)

    def replay(self, entry: LogEntry) -> Steps[StepResult | None]:
        """Take the step of a log entry again, or the state that the entry holds, which gives no gradients.

        Raises ReplayMismatch where the step gives other bits than it had.
        """
        if holds_state(entry):
            yield from self.keep_state(entry)
            return None
        return (yield from self._replay_requests(entry))

    def _replay_requests(self, entry: LogEntry) -> Steps[StepResult]:
        result: StepResult | None = None
        first = decode(entry.requests[0])
        if isinstance(first, m.Ready):
            result = yield from self._replay_rebase(first, entry.requests[1:])
        else:
            for request in (first, *map(decode, entry.requests[1:])):
                if isinstance(request, m.Forward):
                    result = yield from self.forward(request)
                elif isinstance(request, m.Backward):
                    result = yield from self.backward(request)
        if result is None:
            raise SplitEasyError(f"session {self.replica}: the log entry of step {entry.step} is not whole")
        if not entry.gradient_digest.startswith(DIGEST):
            raise SplitEasyError(
                f"session {self.replica}: step {entry.step} was logged by an earlier version, whose digest "
                "is of other tensors",
                hint="let a worker of that version serve the session, and stop it by SIGTERM, so that it "
                "leaves a snapshot; or begin again with `spliteasy agent --restart`",
            )
        self.compare(entry.step, logged=entry.gradient_digest, found=result.digest)
        return result

    def compare(self, step: int, *, logged: str, found: str) -> None:
        """Raises ReplayMismatch where a step that was taken again gave other bits, and the job forbids it."""
        if found != logged and self.job.spec.durability.exactness != "tolerance":
            raise ReplayMismatch(self.replica, step, logged=logged, replayed=found)

    def _replay_rebase(self, request: m.Ready, logged: Sequence[bytes]) -> Steps[StepResult]:
        """Go on from the mean that the log has beside the request."""
        if len(logged) != 3:
            raise SplitEasyError(f"session {self.replica}: the log entry of a round's mean is not whole")
        return (yield from self.rebase(request, RoundAbout.from_json(logged[0]), logged[1], logged[2]))

    def _check_micro(self, request: m.Forward) -> None:
        sizes = micro_sizes(self._batch, self.job.spec.micro_batches)
        whole = request.batch or request.samples
        if (whole, request.samples) != (self._batch, dict(enumerate(sizes)).get(request.micro)):
            raise DataError(
                f"{request.samples} samples of {whole} are not micro-batch {request.micro} of a batch of "
                f"{self._batch} in {len(sizes)}"
            )
        if bool(request.targets) != self.job.spec.single:
            raise DataError(f"{request.targets} targets arrived in a FORWARD of {request.job}")

    def _opened(self, request: m.Forward, done: ForwardDone, kept: bool | None) -> None:
        self._open[request.micro] = done
        self._forwards.append(request.request)
        self._kept.append(kept)

    def _closed(self, answers: str, done: BackwardDone, kept: bool | None = None) -> None:
        share = self._open.pop(self.returned).share
        self._results.append(MicroResult(answers, done.gradients, done.loss, share, kept))

    def _stepped(self, done: StepDone) -> StepResult:
        micros = tuple(self._results)
        if done.skipped:
            nothing = Packed((None,) * len(self.job.body.input_values))
            micros = tuple(replace(each, gradients=nothing, loss=None) for each in micros)
        self._forget()
        self.step += 1
        if not done.skipped:
            self.samples += self._batch
            self.round_samples += self._batch
        return StepResult(micros, done.digest, done.skipped)

    def _forget(self) -> None:
        self._forwards, self._kept, self._results = [], [], []
        self._open.clear()


def _noise_in(request: m.Backward) -> BodyNoise | None:
    if request.noise is None or request.noise_multiplier is None:
        return None
    return BodyNoise(request.noise, request.noise_multiplier)


def open_body(job: Job, replica: str, device: str) -> Steps[LoadedBody]:
    """A body in the job's initial state, whose random layers draw what is the device's."""
    return LoadedBody(job, replica, (yield from OpenBody(job, replica, device)))
