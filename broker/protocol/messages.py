"""The messages of the session protocol: one small frozen record a kind (docs/wire.md).

Everything in a record but `tensors` travels in the envelope's JSON header and is validated by pydantic
when it is decoded: all bytes from the other side are hostile. Tensors travel beside it, raw.

A request's identity is (session, attempt, step, micro, kind, request): a resend keeps `request`, a
request computed again gets a new one. A reply names the request that it answers.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from torch import Tensor

from spliteasy.codecs.packer import Packed
from spliteasy.runtime.readable import shown

MAX_STEP = 2**53 - 1
"""JavaScript reads integers exactly up to here."""

MAX_ATTEMPT = 2**40
"""A device that started over every millisecond would get there after thirty years."""

MAX_BOUNDARY_VALUES = 256
MAX_HELD_STEPS = 1024
MAX_RANGES = 1024
MAX_DIGESTS = 4096
MAX_TOTAL = 1 << 40

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
SessionName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}$")]
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,64}$")]
Micro = Annotated[int, Field(ge=0, le=1023)]
"""The micro-batch, from 0. Where a batch is not split, it is 0 or left out."""

Length = Annotated[int, Field(ge=2, le=1 << 20)]
"""The length of samples that have one of their own. The shortest is 2, to which a sample of 1 is padded."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Shard = Annotated[int, Field(ge=0, le=9999)]
TraceParent = Annotated[str, StringConstraints(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")]
"""The context of a trace as the W3C's Trace Context writes it."""

Step = Annotated[int, Field(ge=0, le=MAX_STEP)]
Ranges = Annotated[
    tuple[
        Annotated[
            tuple[Annotated[int, Field(ge=0, le=MAX_TOTAL)], Annotated[int, Field(ge=0, le=MAX_TOTAL)]],
            Field(strict=False),
        ],
        ...,
    ],
    Field(max_length=MAX_RANGES, strict=False),
]
"""Ranges of a message's bytes, as (first, one past the last) pairs."""


def _as_shown(name: str) -> str:
    if shown(name) != name:
        raise ValueError("a name with characters that are not shown")
    return name


CodecName = Annotated[str, StringConstraints(max_length=40), AfterValidator(_as_shown)]
MAX_TEXT = 2000
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Said = Annotated[Text, AfterValidator(lambda text: shown(text)[:MAX_TEXT])]
"""A text for a person. Characters that would change a terminal are written out where the text enters."""
Name = Annotated[Text, AfterValidator(_as_shown)]
Value = Tensor | int | None
"""A value of a boundary: a tensor, an integer (a batch size), or nothing (an absent gradient)."""


def new_nonce() -> str:
    """64 random bits in hexadecimal: request ids, attempt and owner nonces."""
    return secrets.token_hex(8)


class Record(BaseModel):
    """Base of all messages and of their parts."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )


class AttemptRef(Record):
    """One life of a device's training; `number` is raised durably before it is used."""

    number: Annotated[int, Field(ge=1, le=MAX_ATTEMPT)]
    nonce: Nonce


class Message(Record):
    """The base of every message. `values` holds tensors and integers in the order of the boundary."""

    values: tuple[Value, ...] = Field(default=(), exclude=True, repr=False)


class Packing(Record):
    """The packing of one value: how many tensors of `values` it takes, and what its codec adds."""

    parts: Annotated[int, Field(ge=0, le=8)]
    meta: Annotated[dict[Name, int | Name | list[int]], Field(max_length=8)] = Field(default_factory=dict)


class Carrier(Message):
    """A message with the values of a cut, packed by `codec` (fp32: as they are, `packing` empty)."""

    codec: CodecName = "fp32"
    packing: Annotated[tuple[Packing, ...], Field(max_length=MAX_BOUNDARY_VALUES, strict=False)] = ()
    reply_codec: CodecName | None = None
    """The codec that the answer has to be packed by, named in a request where the job says `auto`. So the log
    has the choice, and a worker that takes over gives the same answer."""


class Request(Message):
    """A request, which a device sends. `session` is `<job>.<device>`.

    Where the device listens now is not in it: frames carry that beside their bytes (header `REPLY_TO`),
    so that a request sent again over another connection is the same bytes.
    """

    session: SessionName
    request: Nonce = Field(default_factory=new_nonce)

    @property
    def device(self) -> str:
        return self.session.partition(".")[2]

    @property
    def job(self) -> str:
        return self.session.partition(".")[0]


class SessionRequest(Request):
    """A request within an opened session."""

    attempt: AttemptRef
    step: Step
    traceparent: TraceParent | None = None
    """The trace of the step, where the device makes traces. It changes nothing."""


class GetJob(Request):
    """Ask any worker for the job's device parts. `digest` pins a version; None: the newest submitted."""

    kind: Literal["GET_JOB"] = "GET_JOB"
    digest: Digest | None = None
    without_parts: bool = False
    """The device holds that version: it asks for the session's shard alone."""


class Open(Request):
    """Begin an attempt: which checkpoints the device holds, of which version of the job."""

    kind: Literal["OPEN"] = "OPEN"
    attempt: AttemptRef
    digest: Digest
    held: Annotated[tuple[Step, ...], Field(min_length=1, max_length=MAX_HELD_STEPS, strict=False)]
    agent: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,40}$")] | None = None
    """The agent's version, for people."""
    total_steps: Step | None = None
    """The number of steps that the training has in all, for people."""
    restart: bool = False
    """Forget what the store has of the session and begin at step 0."""
    previous: Digest | None = None
    """The version that the device's checkpoints were trained on before: where the store still has the session
    under it, `digest` goes on from its trained weights."""


class Forward(SessionRequest, Carrier):
    """Activations of step `step` (1 is the first): values are the head's wire values.

    With shared labels (single split) the targets follow the activations; `targets` counts them.
    """

    kind: Literal["FORWARD"] = "FORWARD"
    micro: Micro = 0
    oldest_checkpoint: Step
    samples: Annotated[int, Field(ge=1, le=1 << 20)]
    length: Length | None = None
    """The length to which the micro-batch's samples are padded; None where all have the job's shapes."""
    batch: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Samples of all the step's micro-batches, which says how many there are; None: this is the only one."""
    targets: Annotated[int, Field(ge=0, le=16)] = 0
    counted: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The labelled elements of all the step's micro-batches, which the loss's mean is over, where labels are
    shared. None says that the mean is over samples, or that the batch has no label."""
    keep: bool | None = None
    """The device may name these rows again in a RECALL: the worker keeps them where it has room, and says so.
    """
    best: bool | None = None
    """The state before this step is the best so far by the device's evaluations: the worker keeps it until
    the device names a better one. The step's first FORWARD says so, where the job has `keep_best`."""


class Recall(SessionRequest, Carrier):
    """A FORWARD of rows that the worker keeps: it names them in place of sending them.

    The worker puts the FORWARD `forward` together and serves that. The fields are that FORWARD's. The first
    value has the names of its rows (uint8, samples × 16), then come the FORWARD's values: an integer as it
    is, of each tensor the rows in `sent` alone, or nothing. The targets, if any, end it.
    """

    kind: Literal["RECALL"] = "RECALL"
    forward: Nonce
    sent: Ranges = ()
    """The rows that travel, because the worker does not keep them, as (first, one past the last) pairs in
    ascending order."""
    micro: Micro = 0
    oldest_checkpoint: Step
    samples: Annotated[int, Field(ge=1, le=1 << 20)]
    batch: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    targets: Annotated[int, Field(ge=0, le=16)] = 0
    counted: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    best: bool | None = None


class Backward(SessionRequest, Carrier):
    """Gradients of the body's outputs; `forward` names the FORWARD that they belong to."""

    kind: Literal["BACKWARD"] = "BACKWARD"
    micro: Micro = 0
    forward: Nonce
    loss: float | None = None
    """The step's training loss, in its last BACKWARD, where the job lets it be reported (`share_loss`). It is
    only shown."""
    outputs: Nonce | None = None
    """The digest (`spliteasy.training.digest`) of the FORWARDED that these gradients belong to: a worker with
    another forward of its own stops."""
    noise: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        default=None, repr=False
    )
    """The source of the noise on the body's gradients, where the job trains by DP-SGD."""
    noise_multiplier: Annotated[float, Field(ge=0.1, le=1e6)] | None = None
    """The size of that noise, in units of the job's clip."""


class Eval(SessionRequest, Carrier):
    """Activations in evaluation mode, to be run on the body after committed step `step`."""

    kind: Literal["EVAL"] = "EVAL"
    samples: Annotated[int, Field(ge=1, le=1 << 20)]
    length: Length | None = None
    """The length to which the samples are padded; None where all have the job's shapes."""


class Ready(SessionRequest):
    """The device's part of a round is done: step `step` goes on from the mean of all.

    Values are the tensors of head and tail that are averaged, in the order of `names`; none where they stay
    on the device, and none where the device comes new (`round` 0).
    """

    kind: Literal["READY"] = "READY"
    round: Step
    """The round that the device has trained for; 0: it comes new, and wants to begin with the others."""
    last: bool = False
    """The device has taken its last step and wants the mean only."""
    whole: bool = True
    """The device has ended its round. False: there are more windows of a body that is shared, and no ends."""
    names: Annotated[tuple[Name, ...], Field(max_length=1 << 16, strict=False)] = ()
    samples: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    """Samples that the device has trained on in the round, by its own count."""
    accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    """The accuracy of the common model on the device's own test data, as it measured that last, where the job
    lets its losses be reported (`share_loss`). It is only shown."""
    nonce: Nonce | None = None
    """Names the pad of sealed ends: then values is one tensor, which only the fleet's devices can read."""
    fleet_key: Nonce | None = None
    """The name of the fleet key that the device drew its initial ends from."""
    oldest_checkpoint: Step


class Ask(SessionRequest):
    """Ask what became of a request. A device sends it after a deadline or a reconnect, instead of tensors."""

    kind: Literal["ASK"] = "ASK"
    about: Nonce
    about_kind: Literal["FORWARD", "BACKWARD", "READY"]
    micro: Micro = 0
    forward: Nonce
    """The FORWARD of that step: the same as `about` where that is no BACKWARD."""
    partial: Annotated[tuple[Nonce, ...], Field(max_length=8, strict=False)] = ()
    """Replies of which some frames have come, by message id."""
    partial_ranges: Annotated[tuple[Ranges, ...], Field(max_length=8, strict=False)] = ()
    """The bytes that have come of each of them: they need not be sent again."""
    total: Annotated[int, Field(ge=1, le=MAX_TOTAL)] | None = None
    """The size in bytes of the request asked about, where an agent before this one may have sent a part of
    the same values. The worker looks for what it has by the digests of the request's blocks."""
    block_bytes: Annotated[int, Field(ge=1, le=MAX_TOTAL)] | None = None
    digests: Annotated[tuple[Nonce, ...], Field(max_length=MAX_DIGESTS, strict=False)] = ()


class GetBody(SessionRequest):
    """Ask for the trained body after committed step `step`, where the job lets it be fetched."""

    kind: Literal["GET_BODY"] = "GET_BODY"


class Close(SessionRequest):
    """The training has ended at `step`."""

    kind: Literal["CLOSE"] = "CLOSE"


# Replies ------------------------------------------------------------------------------------------


class Receipt(Message):
    """A worker's word about a request's bytes. `answers` is the request's id, known from its frames."""

    answers: Nonce


class Have(Receipt):
    """Only these bytes of the request have arrived: the device sends the others."""

    kind: Literal["HAVE"] = "HAVE"
    ranges: Ranges


class Busy(Receipt):
    """The worker can't serve the request now: the device sends it again after `retry_after_s`."""

    kind: Literal["BUSY"] = "BUSY"
    retry_after_s: Annotated[float, Field(ge=0, le=3600)]
    reason: Said = "the worker's budget is full"


class Reply(Message):
    """A worker's answer. `answers` is the request's id."""

    session: SessionName
    answers: Nonce


class SessionReply(Reply):
    """A reply within an attempt, by the owner with that fence."""

    attempt: AttemptRef
    fence: Annotated[int, Field(ge=0, le=MAX_STEP)]


class Job(Reply):
    """The device's parts of a job: values are one uint8 tensor a part, in the order of `parts`."""

    kind: Literal["JOB"] = "JOB"
    digest: Digest
    shard: Shard
    manifest: Annotated[str, StringConstraints(max_length=1 << 20)]
    parts: Annotated[tuple[Name, ...], Field(max_length=64, strict=False)]
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")] | None = None
    """The operator's, of the digest: the worker only hands it on."""


class Opened(SessionReply):
    """The attempt has begun: both sides restore `step`. The next step is step + 1."""

    kind: Literal["OPENED"] = "OPENED"
    step: Step
    durable_step: Step
    newest: Digest | None = None
    """The version of the job that was submitted last, where that is not the session's."""
    shard: Shard | None = None
    """The shard that serves the session. None: an older worker does not say."""


class Superseded(Reply):
    """A newer attempt of this device exists: this one must stop."""

    kind: Literal["SUPERSEDED"] = "SUPERSEDED"
    attempt: AttemptRef
    newest: Annotated[int, Field(ge=0, le=MAX_STEP)]


class Reopen(Reply):
    """The worker can't go on from here (the store went back): raise the attempt and OPEN again."""

    kind: Literal["REOPEN"] = "REOPEN"
    attempt: AttemptRef
    reason: Said
    shard: Shard | None = None
    """The shard that serves the session, where the request came by another one."""


class Forwarded(SessionReply, Carrier):
    """The body's outputs."""

    kind: Literal["FORWARDED"] = "FORWARDED"
    step: Step
    micro: Micro = 0
    kept: bool | None = None
    """True where the worker keeps all rows of the FORWARD; None where that did not ask for it."""


class Gradient(SessionReply, Carrier):
    """Values are the gradients of the activations (null where absent).

    The step's last micro-batch, and so the only one, is answered once the step is committed; those before
    it at once. `loss` is there where the worker computed it (shared labels). `checkpoint` asks the device to
    write a checkpoint now, because the log that its oldest one holds back grows too long.
    """

    kind: Literal["GRADIENT"] = "GRADIENT"
    step: Step
    micro: Micro | None = None
    durable_step: Step
    loss: float | None = None
    checkpoint: bool = False
    skipped: bool = False
    """A gradient was not finite: the step passes without effect, on both sides."""
    kept: bool | None = None
    """True where the worker keeps all rows of the FORWARD that this answers; None where that did not ask."""


class SealedAddend(Record):
    """A device's part in a sealed sum."""

    device: Identifier
    nonce: Nonce
    weight: Annotated[int, Field(ge=0, le=1 << 40)]


class SealedSum(Record):
    """The devices whose sealed ends a sum has, so that it can be opened."""

    round: Step
    drawn: Annotated[int, Field(ge=1, le=1 << 20)]
    """The number of devices drawn for that round, which says where the point of its numbers is."""
    addends: Annotated[tuple[SealedAddend, ...], Field(max_length=1 << 16, strict=False)]


class Mean(SessionReply):
    """The round has ended: step `step` goes on from this mean.

    Values are the means of head and tail, in the order of `names`; none where these stay on the device.
    """

    kind: Literal["MEAN"] = "MEAN"
    step: Step
    durable_step: Step
    round: Step
    """The round that has ended; 0: the training begins."""
    record: Digest
    """Names the record that decided the round."""
    initial: bool = False
    """No mean was taken yet: the initial ends take its place."""
    kept: bool = False
    """The device is in the middle of its round: its ends stay as they are."""
    opened: Step | None = None
    """The record that began the round under way, where that is not `round`: a body is shared."""
    drawn: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """The number of devices drawn for the next round."""
    sealed: SealedSum | None = None
    """There where values is one sealed sum, or what one device has sealed for the next."""
    scheduled: Step | None = None
    """The steps that the learning rate's schedule goes on from: those of all devices, where one hands its
    optimizer over to the next, or those of a body that is shared. None: each device counts its own."""
    names: Annotated[tuple[Name, ...], Field(max_length=1 << 16, strict=False)] = ()


class Evaluated(SessionReply, Carrier):
    """The body's outputs in evaluation mode."""

    kind: Literal["EVALUATED"] = "EVALUATED"
    step: Step


class Missing(SessionReply):
    """The worker lacks the named request of the step: send it again."""

    kind: Literal["MISSING"] = "MISSING"
    step: Step
    micro: Micro | None = None
    missing: Literal["FORWARD", "BACKWARD", "READY"]
    rows: Ranges | None = None
    """The rows of a RECALL that the worker does not keep, as (first, one past the last) pairs."""


class Working(Reply):
    """The worker has the request and is at it: wait."""

    kind: Literal["WORKING"] = "WORKING"
    attempt: AttemptRef
    step: Step


class Body(SessionReply):
    """The trained body: `names` of the tensors in `values`."""

    kind: Literal["BODY"] = "BODY"
    step: Step
    names: Annotated[tuple[Name, ...], Field(max_length=1 << 16, strict=False)]


class Closed(SessionReply):
    """The training's end is stored."""

    kind: Literal["CLOSED"] = "CLOSED"
    step: Step


ErrorCode = Literal[
    "unknown-job",
    "other-job",
    "no-common-step",
    "bad-request",
    "bad-tensor",
    "not-allowed",
    "not-finite",
    "computation-failed",
    "log-full",
    "replay-mismatch",
    "unknown-session",
    "store-full",
    "unavailable",
    "internal",
]


class Error(Reply):
    """The request failed; `retriable` says whether the same request may succeed later."""

    kind: Literal["ERROR"] = "ERROR"
    code: ErrorCode
    message: Said
    hint: Said | None = None
    retriable: bool = False


AnyRequest = GetJob | Open | Forward | Recall | Backward | Ready | Eval | Ask | GetBody | Close
AnyReply = (
    Job
    | Opened
    | Superseded
    | Reopen
    | Forwarded
    | Gradient
    | Mean
    | Evaluated
    | Missing
    | Working
    | Body
    | Closed
    | Have
    | Busy
    | Error
)
AnyMessage = AnyRequest | AnyReply

_ADAPTER: TypeAdapter[AnyMessage] = TypeAdapter(Annotated[AnyMessage, Field(discriminator="kind")])


def carried(packed: Packed, *targets: Tensor) -> dict[str, Any]:
    """The fields of a message that carries these values, and the targets after them."""
    packing = tuple(Packing(parts=parts, meta=dict(meta)) for parts, meta in packed.packing)
    return {
        "values": (*packed.values, *targets),
        "codec": packed.codec,
        "packing": packing,
        "reply_codec": packed.reply_codec,
    }


def packed_in(message: Carrier, *, last: int | None = None) -> Packed:
    """Return the packed values that `carried` was given. `last` leaves out the values from there on
    (targets)."""
    packing = tuple((packing.parts, packing.meta) for packing in message.packing)
    return Packed(message.values[:last], message.codec, packing, message.reply_codec)


def to_header(message: Message) -> dict[str, Any]:
    """The JSON header of a message, without its values."""
    return message.model_dump(mode="json", exclude_none=True)


def from_header(
    header: dict[str, Any], values: tuple[Value, ...], *, ignore_unknown: bool = False
) -> AnyMessage:
    """Validate a decoded header; raises pydantic's ValidationError (the envelope turns it into WireError).

    `ignore_unknown`: fields that no record of ours has are dropped, at any depth, not refused.
    """
    return _ADAPTER.validate_python(
        {**header, "values": values}, extra="ignore" if ignore_unknown else "forbid"
    )
