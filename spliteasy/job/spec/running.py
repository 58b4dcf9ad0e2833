"""The sections `[durability]`, `[evaluation]`, `[link]`, `[plan]` and `[data]` of a job file."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from spliteasy.job.spec.values import (
    AUTO,
    REFERENCE,
    Codec,
    CodecOrAuto,
    Count,
    Name,
    NonNegative,
    Positive,
    Reference,
    Section,
    Steps,
    only,
    parses,
    refuse,
    unique,
)
from spliteasy.runtime.units import parse_duration, parse_rate, parse_size


class DurabilitySpec(Section):
    """Settings of what device and store keep, and for how long."""

    checkpoint_every: Count = 10
    """Steps between two checkpoints of the device."""
    checkpoint_history: Annotated[int, Field(ge=1, le=100)] = 3
    """Checkpoints that a device keeps beside those it still needs."""
    snapshot_every_steps: Count = 50
    snapshot_every_s: Positive = 30.0
    log_max_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 40)] = 1 << 30
    """The log may have this size; then the session stops. From half of it on a device writes a checkpoint at
    every step.

    The log gets that large only where checkpoints don't help: a worker's snapshots cut it long before.
    """
    retention_s: Positive = 30 * 24 * 3600.0
    """A session that nobody touched for so long may be forgotten by the store."""
    on_non_finite: Annotated[str, only("stop", "skip")] = "stop"
    """A gradient that is NaN or infinite ends the training, or (`skip`) the step passes without effect."""
    exactness: Annotated[str, only("bits", "tolerance")] = "bits"
    """A worker that computes other bits is refused, or (`tolerance`) goes on and says so."""
    on_replay_mismatch: Annotated[str, only("stop")] = "stop"


METRICS = ("accuracy", "token_accuracy", "top_5", "f1", "auc", "iou", "mae", "rmse", "perplexity")
"""Metrics by name (`spliteasy.training.metrics`)."""
MAX_FUNCTIONS = 4
LOSS = "loss"
LOWER_IS_BETTER = frozenset({LOSS, "mae", "rmse", "perplexity"})


def _metric(name: str) -> str:
    if name in METRICS or REFERENCE.fullmatch(name):
        return name
    near = difflib.get_close_matches(name, METRICS, n=2, cutoff=0.5) or METRICS
    raise refuse(
        f"{name!r} is no metric; use {' or '.join(map(repr, near))}, or name a function "
        "over (outputs, targets) as module:function"
    )


MetricName = Annotated[str, AfterValidator(_metric)]


class EvaluationSpec(Section):
    """Evaluation on the device's test data, through the split."""

    every_epochs: Steps = 1
    """0: at the end only."""
    batch_size: Count = 256
    metrics: Annotated[tuple[MetricName, ...], Field(max_length=16), AfterValidator(unique)] = ()
    """Metrics beside the loss, by name or as `module:function` over (outputs, targets), traced at submit."""
    patience: Count | None = None
    """Evaluations without improvement after which the training ends. None: it goes on to its last epoch."""
    keep_best: bool = False
    """The training ends with the weights of its best evaluation, on both sides, and not with its last."""
    best_by: Name | None = None
    """The metric that says which is best, or "loss". None: the first of `metrics`, else the loss."""
    best_is: Literal["lowest", "highest"] | None = None
    """None: as the metric means it; of a function the highest."""
    min_delta: NonNegative = 0.0
    """An evaluation is better where it improves on the best one by more than this."""

    @property
    def chosen_by(self) -> str:
        """The number that `patience` and `keep_best` go by."""
        return self.best_by or (self.metrics[0] if self.metrics else LOSS)

    @property
    def lower_is_better(self) -> bool:
        """Return whether a lower number is better."""
        return self.best_is == "lowest" if self.best_is else self.chosen_by in LOWER_IS_BETTER

    @property
    def judges(self) -> bool:
        """Return whether something follows from which evaluation is the best."""
        return self.keep_best or self.patience is not None

    @property
    def unused(self) -> set[str]:
        """The keys that say nothing here, and that older versions do not know."""
        saying = {
            "patience": self.patience is not None,
            "keep_best": self.keep_best,
            **dict.fromkeys(("best_by", "best_is", "min_delta"), self.judges),
            "metrics": bool(self.metrics),
        }
        return {key for key, says in saying.items() if not says}

    @model_validator(mode="after")
    def _best_fits(self) -> Self:
        if not self.judges and (self.best_by or self.best_is or self.min_delta):
            raise refuse(
                "best_by, best_is and min_delta say when an evaluation is better: set keep_best = true or "
                "patience too"
            )
        if self.chosen_by not in (LOSS, *self.metrics):
            raise refuse(
                f"best_by: {self.chosen_by!r} is not measured; add it to metrics, or name one of them"
            )
        if self.judges and not self.every_epochs:
            raise refuse(
                "patience and keep_best need evaluations while the training goes on: set every_epochs"
            )
        return self

    @property
    def functions(self) -> tuple[str, ...]:
        """The metrics that are functions of the user's, in order."""
        return tuple(name for name in self.metrics if ":" in name)

    @model_validator(mode="after")
    def _few_functions(self) -> Self:
        if len(self.functions) > MAX_FUNCTIONS:
            raise refuse(f"metrics: at most {MAX_FUNCTIONS} may be functions, and {len(self.functions)} are")
        return self


class LinkSpec(Section):
    """Settings of how tensors travel. Both directions are alike: activations up and down, gradients up and
    down.

    Under "auto" the device picks, for each message and by what it measures of its link, a codec of `allow`.
    """

    chunk_bytes: Annotated[int, Field(ge=4096, le=8 << 20)] = 1 << 20
    activations: CodecOrAuto = "fp32"
    gradients: CodecOrAuto = "fp32"
    allow: Annotated[tuple[Codec, ...], Field(max_length=8), AfterValidator(unique)] = ()
    """The codecs that "auto" may use, the best liked first: they are the loss of precision that the job
    accepts."""
    cache: bool = True
    """A worker keeps activations that a device with a frozen head sends again in each epoch, and the device
    names them from then on. It changes no bit of what is trained."""

    @model_validator(mode="after")
    def _auto_is_bounded(self) -> Self:
        if self.auto != bool(self.allow):
            raise refuse(
                'activations or gradients = "auto" and allow = ["lossless", "fp16"] (what it may use, the '
                "best liked first) belong together"
            )
        return self

    @property
    def auto(self) -> bool:
        """Return whether the device chooses codecs as it goes."""
        return AUTO in (self.activations, self.gradients)

    @property
    def codecs(self) -> dict[Literal["activations", "gradients"], tuple[str, ...]]:
        """The codecs that each kind of values may travel by."""
        return {
            "activations": self.allow if self.activations == AUTO else (self.activations,),
            "gradients": self.allow if self.gradients == AUTO else (self.gradients,),
        }


class PlanSpec(Section):
    """Device, link and wishes that `spliteasy plan` and `cuts = "auto"` choose the cuts for."""

    uplink: Annotated[str, parses(parse_rate)] = "20mbit"
    downlink: Annotated[str, parses(parse_rate)] = "50mbit"
    rtt: Annotated[str, parses(parse_duration)] = "50ms"
    device_speed: Positive = 1.0
    """The speed at which a device trains, where the machine that plans the job has 1: a phone has 0.1, say.
    """
    server_speed: Positive = 1.0
    device_memory: Annotated[str, parses(parse_size)] | None = None
    min_head_layers: Steps = 0
    """Modules with weights that the head has at least."""
    max_input_correlation: Annotated[float, Field(gt=0, le=1)] | None = None
    """Distance correlation between inputs and what the head sends, at most; measured on `sample`."""
    sample: Reference | None = None
    """Returns (inputs, targets) as `model.example` does, such as devices have them; default: the example."""


class DataSpec(Section):
    """A recipe for the devices' data: how a folder of pictures becomes the model's inputs and targets.

    Channels and size are those of the model's input (`model.example`).
    """

    kind: Literal["images"]
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096), AfterValidator(unique)]
    """The names of the sub-folders, in the order of the model's outputs: 0 is the first."""
    resize: Literal["none", "stretch", "crop", "pad"] = "none"
    """A picture of another size is made to fit in one of these ways: not at all (an error), by stretching it,
    by covering the model's size and cutting off the rest, or by fitting it in with black around it."""
    mean: Annotated[tuple[float, ...], Field(max_length=3)] = ()
    """This is subtracted from the values, which are 0 (black) to 1 (white): one number a channel, or one for
    all."""
    std: Annotated[tuple[Positive, ...], Field(max_length=3)] = ()
    """The values are divided by this, after `mean` was subtracted."""
