"""Events that happen to a device's session, and actions that it asks its shell for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from broker.protocol import messages as m
from broker.protocol.rows import RowName
from spliteasy.codecs.packer import Packed
from spliteasy.errors import SplitEasyError
from spliteasy.training.private_trainer import BodyNoise


class Timer(Enum):
    """The timers of a session; arming one again replaces it."""

    REPLY = "reply"
    """No answer came: the session asks what became of the request."""
    RETRY = "retry"
    """The worker was busy, or failed for now: try again."""
    STOP = "stop"
    """The current step did not end soon enough after the user asked to stop."""


# Events -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A connection is there and replies are read."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection is gone; what was being sent may have arrived or not."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A computation, or writing the state down, has failed: the shell ends with the error."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Received:
    message: m.AnyMessage


@dataclass(frozen=True, slots=True)
class Arriving:
    """A part of a reply has come: more is on the way."""


@dataclass(frozen=True, slots=True)
class Sent:
    """The broker has all of the request."""

    request: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """No queue took the request, because no worker has served this broker yet."""

    request: str


@dataclass(frozen=True, slots=True)
class Fired:
    timer: Timer


@dataclass(frozen=True, slots=True)
class StopAsked:
    """The user wants to stop: end the current step, write a checkpoint, leave."""


@dataclass(frozen=True, slots=True)
class Hold:
    """No step may begin now; `why` is for a person. A step that has begun goes on to its end."""

    why: str


@dataclass(frozen=True, slots=True)
class Go:
    """Steps may begin again."""


@dataclass(frozen=True, slots=True)
class AttemptRaised:
    attempt: m.AttemptRef


@dataclass(frozen=True, slots=True)
class Restored:
    """Head, tail and optimizers are as they were after the step asked for; newer checkpoints are gone."""

    held: tuple[int, ...]
    evaluated: bool = False
    """The state has the judgement of the evaluation after its step, where evaluations are judged."""
    finished: bool = False
    """The training has ended at this step, by its evaluations."""
    best: int = 0
    """The step whose state is kept as the best so far; 0 where none is."""


@dataclass(frozen=True, slots=True)
class HeadDone:
    """The head's wire values of a micro-batch, packed; with shared labels the targets follow them."""

    values: Packed
    samples: int
    targets: tuple[Tensor, ...]
    batch: int
    """Samples of the whole batch."""
    counted: float | None = None
    """Labelled elements of the whole batch, where labels are shared and the loss's mean is over those."""
    names: tuple[RowName, ...] | None = None
    """The names of the values' rows, where these come again in the next epoch."""
    length: int | None = None
    """The length to which the micro-batch's samples are padded, where they have one."""


@dataclass(frozen=True, slots=True)
class TailDone:
    """Gradients of the body's outputs; the loss, where the server may know it."""

    gradients: Packed
    loss: float | None = None
    noise: BodyNoise | None = None
    """The noise that the worker adds under DP-SGD."""


@dataclass(frozen=True, slots=True)
class HeadBackwardDone:
    """The head's gradients of a micro-batch were added up."""


@dataclass(frozen=True, slots=True)
class Applied:
    """Head and tail took the step."""


@dataclass(frozen=True, slots=True)
class HandInDone:
    """The hand-in of head and tail, by name; nothing where these stay, or the device comes new."""

    round: int
    """The round that the device has trained for; 0: it comes new."""
    ends: Mapping[str, Tensor]
    fleet_key: str | None
    """The name of the key that its initial ends were drawn from."""
    samples: int = 0
    """Samples that it has trained on in the round."""
    nonce: str | None = None
    """Names the pad, where the ends are sealed."""
    whole: bool = True
    """It has ended its round; False: there are more windows of a body that is shared."""
    accuracy: float | None = None
    """The accuracy that it measured last, where the job lets it be told."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint was written; `held` are all steps that can be restored, ascending."""

    held: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WentBack:
    """The best step's checkpoint is the only one, and says that the training has ended."""

    held: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EvalHeadDone:
    values: Packed
    samples: int
    length: int | None = None
    """The length to which the samples are padded, where they have one."""


@dataclass(frozen=True, slots=True)
class EvalTailDone:
    """A batch was evaluated; `more` says whether another follows."""

    more: bool
    finished: bool = False
    """The evaluation ends the training."""
    best: int = 0
    """The step whose state is kept as the best so far; 0 where none is."""


Event = (
    LinkUp
    | LinkDown
    | Failed
    | Received
    | Arriving
    | Sent
    | NotSent
    | Fired
    | StopAsked
    | Hold
    | Go
    | AttemptRaised
    | Restored
    | HeadDone
    | TailDone
    | HeadBackwardDone
    | Applied
    | HandInDone
    | Saved
    | WentBack
    | EvalHeadDone
    | EvalTailDone
)


# Actions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send to the session's shard; gives Sent, NotSent, or nothing where the link goes down first."""

    message: m.Request
    skip: m.Ranges = ()
    """The bytes of it that the worker has."""
    whole: m.Forward | m.Backward | None = None
    """The request that an ASK is about, where the worker may have a part of the same values under another id.
    """


@dataclass(frozen=True, slots=True)
class Arm:
    timer: Timer
    delay_s: float


@dataclass(frozen=True, slots=True)
class Disarm:
    timer: Timer


@dataclass(frozen=True, slots=True)
class RaiseAttempt:
    """Store a new attempt durably, above `above`; gives AttemptRaised."""

    above: int = 0


@dataclass(frozen=True, slots=True)
class Restore:
    """Load the checkpoint of `step`, drop newer ones; gives Restored."""

    step: int


@dataclass(frozen=True, slots=True)
class RunHead:
    """Compute the head on a micro-batch of `step`; gives HeadDone."""

    step: int
    micro: int = 0


@dataclass(frozen=True, slots=True)
class RunTail:
    """Compute tail, loss and their backward on a micro-batch; gives TailDone."""

    values: Packed
    micro: int = 0


@dataclass(frozen=True, slots=True)
class RunHeadBackward:
    """Head backward of the next micro-batch, but for the last; gives HeadBackwardDone."""

    gradients: Packed
    loss: float | None


@dataclass(frozen=True, slots=True)
class Apply:
    """Head backward of the last micro-batch, then head and tail step together; gives Applied.

    `loss`: the worker's, if it has it.
    """

    gradients: Packed
    loss: float | None
    skipped: bool = False
    """The step passes without effect: a gradient was not finite."""


@dataclass(frozen=True, slots=True)
class HandIn:
    """Read out what the round gets of head and tail; gives HandInDone."""


@dataclass(frozen=True, slots=True)
class TakeMean:
    """Head and tail go on from the mean of the round that has ended; gives Applied."""

    mean: m.Mean


@dataclass(frozen=True, slots=True)
class Save:
    """Forget an open forward and write a checkpoint of `step` (if not there yet), prune; gives Saved."""

    step: int
    durable_step: int
    asked: bool = False
    """The server asked for it, so that its log can be cut: keep few of the older ones."""


@dataclass(frozen=True, slots=True)
class GoBack:
    """Let the checkpoint of `step`, the best, take the place of all others: the training has ended; gives
    WentBack."""

    step: int


@dataclass(frozen=True, slots=True)
class EvalHead:
    """The head in evaluation mode on test batch `index`; gives EvalHeadDone."""

    index: int


@dataclass(frozen=True, slots=True)
class EvalTail:
    """Tail and loss in evaluation mode on test batch `index` of step `step`; gives EvalTailDone."""

    index: int
    step: int
    values: Packed


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person may want to see."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The session is over: `done` after the last step, else stopped on request."""

    done: bool


@dataclass(frozen=True, slots=True)
class Fail:
    """The session can't go on."""

    error: SplitEasyError


Action = (
    Send
    | Arm
    | Disarm
    | RaiseAttempt
    | Restore
    | RunHead
    | RunTail
    | RunHeadBackward
    | Apply
    | HandIn
    | TakeMean
    | Save
    | GoBack
    | EvalHead
    | EvalTail
    | Note
    | Finish
    | Fail
)
Actions = Sequence[Action]
