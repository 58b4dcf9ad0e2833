"""The job's description: everything that a training depends on but the model's weights and the data.

A job file (TOML) is validated into a `JobSpec`; its canonical JSON is part of the job's digest.
What is foreseen but not built is refused by name, never ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from spliteasy.codecs import codec_names, parse_codec
from spliteasy.errors import JobError
from spliteasy.job.micro_batches import MAX_MICRO_BATCHES
from spliteasy.runtime.units import parse_duration, parse_rate, parse_size

MAX_COUNT = 2**31 - 1
"""Upper bound of counts (batch size, steps, epochs): reads the same in every language."""

MAX_SEED = 2**53 - 1
ELEMENTWISE = ("fp32", "fp16", "bf16", "lossless")
"""Codecs in which no number depends on another sample's."""

AUTO = "auto"


def _refuse(message: str) -> PydanticCustomError:
    """An error whose text is for the person who wrote the job file."""
    return PydanticCustomError("job", "{message}", {"message": message})


def _unknown_key(section: type[BaseModel], key: str) -> PydanticCustomError:
    known = sorted(section.model_fields)
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if near:
        message = f"unknown key, did you mean {' or '.join(near)}?"
    elif section is not JobSpec and key in JobSpec.model_fields:
        message = "unknown key here; it belongs at the top of the file, before the first [section]"
    else:
        message = f"unknown key; known here: {', '.join(known)}"
    return PydanticCustomError("unknown_key", "{message}", {"message": message, "key": key})


def _only(*built: str, planned: tuple[str, ...] = ()) -> AfterValidator:
    """A choice of which only `built` works; names in `planned` are refused as not built yet."""

    def check(value: str) -> str:
        if value in built:
            return value
        if value.partition(":")[0] in planned:
            raise _refuse(f"{value!r} is not built yet; use {' or '.join(map(repr, built))}")
        raise _refuse(f"{value!r} is not known; use {' or '.join(map(repr, built))}")

    return AfterValidator(check)


def _auto_or_cuts(value: Any) -> Any:
    """ "auto" is kept as no cuts at all, until the planner has named them."""
    if value == "auto":
        return ()
    if isinstance(value, tuple) and not value:
        raise _refuse('name one or two modules, as in ["stem", "pool"], or "auto"')
    return value


def _unique(names: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise _refuse(f"{name!r} is named twice")
        seen.add(name)
    return names


Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Reference = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", max_length=300)]
"""`module:function` in the user's own files: resolved where the user runs a command, never elsewhere."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Names = Annotated[tuple[Name, ...], Field(min_length=1, max_length=16), AfterValidator(_unique)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Steps = Annotated[int, Field(ge=0, le=MAX_COUNT)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _known_codec(name: str) -> str:
    if name == AUTO:
        raise _refuse(f"'auto' belongs in activations and gradients; name {', '.join(codec_names())}")
    return _codec_or_auto(name)


def _codec_or_auto(name: str) -> str:
    if name == AUTO:
        return name
    try:
        return parse_codec(name).name
    except JobError as error:
        raise _refuse(str(error)) from None


Codec = Annotated[str, AfterValidator(_known_codec)]
CodecOrAuto = Annotated[str, AfterValidator(_codec_or_auto)]


class Section(BaseModel):
    """Base of all sections: frozen, strict, unknown keys refused with the near ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        """Refuse unknown keys with a hint; arrays of TOML and JSON become the tuples of a frozen spec."""
        if not isinstance(data, dict):
            return data
        for key in data:
            if key not in cls.model_fields:
                raise _unknown_key(cls, str(key))
        return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


class ModelSpec(Section):
    """The model that is trained, and where it is cut."""

    factory: Reference
    """This function is called without arguments after torch was seeded with the job's seed; it returns an
    `nn.Module`."""
    example: Reference
    """Returns (inputs, targets), each a tensor or a tuple of them, batch first: shapes and dtypes count."""
    cuts: Annotated[
        tuple[Name, ...], BeforeValidator(_auto_or_cuts), Field(max_length=2), AfterValidator(_unique)
    ]
    """One cut: head and body, the worker computes the loss. Two: head, body and tail. "auto": planned."""
    inputs: Names = ("input",)
    targets: Names = ("target",)

    @property
    def auto(self) -> bool:
        """Return whether the cuts are still to be planned, which is never so in a job that was submitted."""
        return not self.cuts


class LossSpec(Section):
    """A name from `spliteasy.training.losses`, or a function over (outputs, targets) traced at submit.

    Where the job has one output or one target, the function gets that tensor itself, else a tuple.
    """

    name: Literal["cross_entropy", "nll", "bce_with_logits", "mse", "l1", "smooth_l1"] | None = None
    function: Reference | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.name is None) == (self.function is None):
            raise _refuse("give either name or function")
        return self


class GroupSpec(Section):
    """Settings for the parameters whose original name matches `pattern`; the first match counts."""

    pattern: Name
    """The pattern is one of `fnmatch`: `stem.*`, `*.bias`."""
    lr: NonNegative | None = None
    weight_decay: NonNegative | None = None
    frozen: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.frozen and (self.lr is not None or self.weight_decay is not None):
            raise _refuse("a frozen group takes no lr and no weight_decay")
        if not self.frozen and self.lr is None and self.weight_decay is None:
            raise _refuse("a group needs lr, weight_decay or frozen = true")
        return self


class _OptimizerBase(Section):
    lr: Positive
    weight_decay: NonNegative = 0.0
    groups: Annotated[tuple[GroupSpec, ...], Field(max_length=64)] = ()


class SgdSpec(_OptimizerBase):
    """`torch.optim.SGD`."""

    name: Literal["sgd"]
    momentum: NonNegative = 0.0
    dampening: NonNegative = 0.0
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise _refuse("nesterov needs momentum > 0 and dampening = 0")
        return self


class AdamSpec(_OptimizerBase):
    """`torch.optim.Adam`."""

    name: Literal["adam"]
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamWSpec(_OptimizerBase):
    """`torch.optim.AdamW`."""

    name: Literal["adamw"]
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8


OptimizerSpec = Annotated[SgdSpec | AdamSpec | AdamWSpec, Field(discriminator="name")]


class _ScheduleBase(Section):
    warmup_steps: Steps = 0
    """The rate rises in equal parts over these steps, and is whole at the last of them."""


class ConstantSpec(_ScheduleBase):
    """The rate stays."""

    name: Literal["constant"] = "constant"


class StepSpec(_ScheduleBase):
    """The rate is multiplied by `gamma` after every `step_size` steps that follow the warm-up."""

    name: Literal["step"]
    step_size: Count
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


class CosineSpec(_ScheduleBase):
    """The rate falls by half a cosine to `min_factor` at `steps`, warm-up included, and stays there.

    `steps` is explicit: devices differ in data size, and the server does not know it.
    """

    name: Literal["cosine"]
    steps: Count
    min_factor: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _longer_than_warmup(self) -> Self:
        if self.steps <= self.warmup_steps:
            raise _refuse(f"steps ({self.steps}) must be more than warmup_steps ({self.warmup_steps})")
        return self


ScheduleSpec = Annotated[ConstantSpec | StepSpec | CosineSpec, Field(discriminator="name")]


class ClipSpec(Section):
    """Clip the gradient's 2-norm, for each segment on its own."""

    max_norm: Positive
    scope: Annotated[str, _only("segment", planned=("global",))] = "segment"


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
    on_non_finite: Annotated[str, _only("stop", "skip")] = "stop"
    """A gradient that is NaN or infinite ends the training, or (`skip`) the step passes without effect."""
    exactness: Annotated[str, _only("bits", "tolerance")] = "bits"
    """A worker that computes other bits is refused, or (`tolerance`) goes on and says so."""
    on_replay_mismatch: Annotated[str, _only("stop")] = "stop"


class EvaluationSpec(Section):
    """Evaluation on the device's test data, through the split."""

    every_epochs: Steps = 1
    """0: at the end only."""
    batch_size: Count = 256


class LinkSpec(Section):
    """Settings of how tensors travel. Both directions are alike: activations up and down, gradients up and
    down.

    Under "auto" the device picks, for each message and by what it measures of its link, a codec of `allow`.
    """

    chunk_bytes: Annotated[int, Field(ge=4096, le=8 << 20)] = 1 << 20
    activations: CodecOrAuto = "fp32"
    gradients: CodecOrAuto = "fp32"
    allow: Annotated[tuple[Codec, ...], Field(max_length=8), AfterValidator(_unique)] = ()
    """The codecs that "auto" may use, the best liked first: they are the loss of precision that the job
    accepts."""

    @model_validator(mode="after")
    def _auto_is_bounded(self) -> Self:
        if self.auto != bool(self.allow):
            raise _refuse(
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


def _parses(parse: Callable[[str], float]) -> AfterValidator:
    """A text that `parse` takes."""

    def check(text: str) -> str:
        try:
            parse(text)
        except JobError as error:
            raise _refuse(str(error)) from None
        return text

    return AfterValidator(check)


class PlanSpec(Section):
    """Device, link and wishes that `spliteasy plan` and `cuts = "auto"` choose the cuts for."""

    uplink: Annotated[str, _parses(parse_rate)] = "20mbit"
    downlink: Annotated[str, _parses(parse_rate)] = "50mbit"
    rtt: Annotated[str, _parses(parse_duration)] = "50ms"
    device_speed: Positive = 1.0
    """The speed at which a device trains, where the machine that plans the job has 1: a phone has 0.1, say.
    """
    server_speed: Positive = 1.0
    device_memory: Annotated[str, _parses(parse_size)] | None = None
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
    classes: Annotated[tuple[Name, ...], Field(min_length=1, max_length=4096), AfterValidator(_unique)]
    """The names of the sub-folders, in the order of the model's outputs: 0 is the first."""
    resize: Literal["none", "stretch", "crop", "pad"] = "none"
    """A picture of another size is made to fit in one of these ways: not at all (an error), by stretching it,
    by covering the model's size and cutting off the rest, or by fitting it in with black around it."""
    mean: Annotated[tuple[float, ...], Field(max_length=3)] = ()
    """This is subtracted from the values, which are 0 (black) to 1 (white): one number a channel, or one for
    all."""
    std: Annotated[tuple[Positive, ...], Field(max_length=3)] = ()
    """The values are divided by this, after `mean` was subtracted."""


Share = Annotated[float, Field(ge=0, le=1)]


class LimitsSpec(Section):
    """Bounds on what an attack may reach (`spliteasy leakage`). A measure without a bound is only reported.

    The training does not depend on it, so that it is no part of the job's digest.
    """

    label_recovery: Share | None = None
    """Share of all training labels that are recovered."""
    canary_recovery: Share | None = None
    """The same of samples whose labels were drawn at random: only a leak tells these."""
    input_mse: NonNegative | None = None
    """Mean squared error of reconstructed inputs, **at least**."""
    token_recovery: Share | None = None
    """Share of tokens that are recovered."""
    membership_advantage: Share | None = None
    """True less false positives, at 1 % false ones, of telling who was trained on."""
    property_inference: Share | None = None
    """Share of samples put into the right half by a property of the input."""
    linkage: Share | None = None
    """Share of samples found again in the next epoch."""
    hijack_unnoticed: Share | None = None
    """Share of a hijacked training that passes before the device notices."""
    hijack_false_alarms: Share | None = None
    """Share of the steps of an honest training at which it would give alarm."""


class DpSpec(Section):
    """DP-SGD bounds how little the trained model tells of one sample, against anybody who has the model.

    A worker sees each sample's activations and gradients; this protects nothing from it.
    """

    epsilon: Positive | None = None
    """The ε that the whole training spends at most; the noise follows from it."""
    noise_multiplier: Annotated[float, Field(ge=0.1, le=1e6)] | None = None
    """Or the noise itself: σ in units of `max_grad_norm`; ε follows from it."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    max_grad_norm: Positive = 1.0
    """The most that one sample moves the sum of gradients, all segments together."""
    expected_batch: Count
    """Samples of a step on average: each is drawn with probability expected_batch / samples."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise _refuse("give either epsilon or noise_multiplier")
        return self


STRICT: dict[str, Any] = {"peer_labels": True}
"""The settings of `preset = "strict"`, found by measuring (docs/privacy.md)."""

DEFENCES = (
    "preset",
    "clip_activations",
    "noise_activations",
    "gradient_noise",
    "nopeek",
    "label_dp",
    "peer_labels",
    "dp",
)
"""The keys of `[privacy]` that change what crosses the cuts."""


class PrivacySpec(Section):
    """Settings of what the other side may learn (docs/privacy.md)."""

    ends: Annotated[str, _only("secret", "perturb", "public")] = "secret"
    """The source of the initial weights of head and tail. "secret": each device draws its own, by the law of
    the model's initialization; weights without such a law are public, and `submit` names them. "perturb":
    public weights are also multiplied by 1 + σ·ξ on the device. "public": all are in the package, so that a
    worker can follow the training of head and tail to the last bit, and knows labels and inputs."""
    perturb: Annotated[float, Field(ge=0.01, le=1)] = 0.1
    """σ of `ends = "perturb"`, beside each weight's own size."""
    preset: Literal["strict"] | None = None
    """"strict": the settings of `STRICT`, where the file gives no others."""
    clip_activations: Positive | None = None
    """The most that a sample's activations at the first cut have as their 2-norm; scaled down to it."""
    noise_activations: NonNegative = 0.0
    """σ of normal noise on each element of the clipped activations, in units of the clip."""
    gradient_noise: Literal["max_norm"] | Positive | None = None
    """Noise on the gradients that a device sends. "max_norm": each sample's gradient is multiplied by a
    random number, so that all have the expected norm of the largest. A number σ: normal noise in every
    direction, whose norm is about σ times the largest sample's."""
    nopeek: Positive | None = None
    """λ: the head's loss gains λ times the distance correlation of inputs and what crosses the first cut."""
    label_dp: Annotated[float, Field(gt=0, le=50)] | None = None
    """ε of randomized response on the training labels, once a sample."""
    peer_labels: bool = False
    """Each sample trains on the label that the device's other samples give it, not on its own: a label that
    nothing else tells leaves no trace. With `label_dp` the peers see the answers only, and its ε holds."""
    dp: DpSpec | None = None
    limits: LimitsSpec = LimitsSpec()

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("preset") == "strict":
            return {**STRICT, **data}
        return data

    @model_validator(mode="after")
    def _noise_has_a_clip(self) -> Self:
        if self.noise_activations and self.clip_activations is None:
            raise _refuse("noise_activations is in units of clip_activations: set that too")
        return self

    @model_validator(mode="after")
    def _dp_stands_alone(self) -> Self:
        if self.dp and (self.clip_activations is not None or self.gradient_noise or self.nopeek):
            raise _refuse(
                "dp clips each sample's gradients and adds its own noise: leave clip_activations, "
                "gradient_noise and nopeek out"
            )
        if self.dp and self.peer_labels:
            raise _refuse("with peer_labels one sample moves the labels of others, which dp does not count")
        return self

    @model_validator(mode="after")
    def _perturb_is_used(self) -> Self:
        if self.ends != "perturb" and self.perturb != type(self).model_fields["perturb"].default:
            raise _refuse('perturb belongs to ends = "perturb"')
        return self


_SHARED_MODE_KEYS = ("window", "order", "merge")
"""Keys of `mode = "shared"`, which is not built."""

MAX_ROUND_SAMPLES = 1 << 30
ROUND_SAMPLES = 1 << 20
"""The most samples of a device's round where sealing needs a limit and the job says none."""

LEAST_SEALED = 3


class FleetSpec(Section):
    """Settings of the rounds in which devices make one model (docs/fleet.md).

    Under "splitfed" every device trains its own copy of the body for a round, and at the round's end all go
    on from the mean (SplitFed V1; with `ends = "own"` V3). Every key but `mode` belongs to it.
    """

    mode: Annotated[str, _only("personal", "splitfed", planned=("shared", "relay"))] = "personal"
    """"personal": each device trains a model of its own."""
    ends: Annotated[str, _only("average", "own", planned=("relay",))] = "average"
    """Head and tail are averaged with the body, or stay each device's own."""
    round_steps: Count | None = None
    """Training steps of a device between two means; or `round_epochs`: passes over its own data."""
    round_epochs: Count | None = None
    devices_per_round: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The number of devices that are drawn for a round, among those that are there. None: all of them."""
    quorum: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = 0.5
    """The devices of a round that have to hand in for their mean to count: a number, or a share."""
    deadline: Annotated[str, _parses(parse_duration)] = "10min"
    """The longest that a round lasts. A device that has not handed in by then is left out of its mean."""
    weights: Annotated[str, _only("samples", "equal")] = "samples"
    """A device counts for the samples that it trained on in the round, or as much as any other."""
    optimizer: Annotated[str, _only("reset", "keep", "average")] = "reset"
    """The fate of the optimizers' state at a mean."""
    norm: Annotated[str, _only("average", "local")] = "average"
    """"local" (FedBN): batch norm, with its weights and running statistics, stays each device's own."""
    aggregate: Annotated[str, _only("plain", "sealed")] | None = None
    """Averaged ends leave a device "sealed", the default, so that only devices can read them, or "plain", in
    the open (with `share_ends`)."""
    max_samples: Annotated[int, Field(ge=1, le=MAX_ROUND_SAMPLES)] | None = None
    """The most samples that a device may have trained on in a round."""
    max_norm: Positive = 1e6
    """The largest 2-norm that the averaged weights which a device hands in may have."""

    @model_validator(mode="before")
    @classmethod
    def _other_modes(cls, data: Any) -> Any:
        for key in _SHARED_MODE_KEYS:
            if isinstance(data, dict) and key in data:
                raise _refuse(f'{key} belongs to mode = "shared", which is not built yet; remove it')
        return data

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.mode == "personal":
            if unused := sorted(self.model_fields_set - {"mode"}):
                raise _refuse(
                    f'{", ".join(unused)} belongs to mode = "splitfed": under "personal" nothing is averaged'
                )
            return self
        if self.round_steps is not None and self.round_epochs is not None:
            raise _refuse("give either round_steps or round_epochs: both say when a round ends")
        if self.ends == "own" and self.aggregate is not None:
            raise _refuse('aggregate says how ends leave a device, and with ends = "own" they never do')
        if self.seals and self.optimizer == "average":
            raise _refuse(
                'optimizer = "average" needs numbers of any size, and sealed ends are whole numbers within a '
                'range: use optimizer = "reset" or "keep", or aggregate = "plain"'
            )
        few = self.devices_per_round
        if self.seals and few is not None and few < LEAST_SEALED:
            raise _refuse(
                f"devices_per_round = {few}: a sealed mean takes {LEAST_SEALED} devices, since the mean "
                "of two tells each of them what the other has"
            )
        most = self.devices_per_round
        if most is not None and not isinstance(self.quorum, float) and self.quorum > most:
            raise _refuse(
                f"quorum = {self.quorum} can never be reached by devices_per_round = {most}; lower the quorum"
            )
        if parse_duration(self.deadline) <= 0:
            raise _refuse("deadline must be longer than nothing")
        return self

    @property
    def averages(self) -> bool:
        """Return whether there are rounds at all."""
        return self.mode == "splitfed"

    @property
    def epochs_per_round(self) -> int | None:
        """Return the passes over its data that a device makes in a round; None if it counts steps."""
        return None if self.round_steps is not None else self.round_epochs or 1

    @property
    def averages_ends(self) -> bool:
        """Return whether head and tail leave the devices for the mean."""
        return self.averages and self.ends == "average"

    @property
    def seals(self) -> bool:
        """Return whether head and tail leave the devices so that only devices can read them."""
        return self.averages_ends and self.aggregate != "plain"

    def most_weight(self, batch_size: int) -> int:
        """Return the most that a device can count for in a mean."""
        if self.weights == "equal":
            return 1
        if self.max_samples is not None:
            return self.max_samples
        return ROUND_SAMPLES if self.round_steps is None else self.round_steps * batch_size

    @property
    def deadline_s(self) -> float:
        return parse_duration(self.deadline)


class JobSpec(Section):
    """One job. `spliteasy.job.load_job_file` reads it from TOML."""

    name: Identifier
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    batch_size: Count
    drop_last: bool = False
    epochs: Count
    micro_batches: Annotated[int, Field(ge=1, le=MAX_MICRO_BATCHES)] = 1
    """Parts of a batch that travel and are computed one after the other, so that head, upload, body,
    download and tail overlap; one optimizer step for all (`spliteasy.job.micro_batches`)."""
    precision: Annotated[str, _only("fp32", planned=("fp16", "bf16", "mixed"))] = "fp32"
    share_inputs: Annotated[tuple[Name, ...], Field(max_length=16), AfterValidator(_unique)] = ()
    """Inputs that may leave the device, by name."""
    share_labels: bool = False
    """Labels leave the device: what single split (one cut) needs, since the worker computes the loss."""
    share_loss: bool = False
    """The device reports its training loss, a number per step, for the curves that `spliteasy dashboard`
    draws. With one cut the worker computes it anyway."""
    share_body: bool = False
    """A device may fetch the trained body (`spliteasy merge`)."""
    share_ends: bool = False
    """Head and tail may leave the device, so that a worker can average them (`[fleet] aggregate =
    "plain"`)."""
    model: ModelSpec
    loss: LossSpec
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ConstantSpec()
    clip: ClipSpec | None = None
    durability: DurabilitySpec = DurabilitySpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    link: LinkSpec = LinkSpec()
    fleet: FleetSpec = FleetSpec()
    data: DataSpec | None = None
    """None: the devices' data come from functions, or from folders with every class."""
    privacy: PrivacySpec = PrivacySpec()
    plan: PlanSpec = PlanSpec()

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> Self:
        if self.micro_batches > self.batch_size:
            raise _refuse(
                f"micro_batches: a batch of {self.batch_size} can't be split into {self.micro_batches}; "
                f"use at most {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _sharing_fits(self) -> Self:
        for name in self.share_inputs:
            if name not in self.model.inputs:
                raise _refuse(
                    f"share_inputs: {name!r} is no input; model.inputs has {', '.join(self.model.inputs)}"
                )
        if self.single and not self.share_labels:
            raise _refuse(
                "with one cut the server computes the loss, so labels leave the device: "
                "set share_labels = true, or name two cuts to keep them"
            )
        if self.share_labels and not self.single:
            raise _refuse("share_labels: with two cuts labels stay on the device; remove share_labels")
        if self.fleet.averages and self.privacy.dp is not None:
            raise _refuse(
                "privacy.dp counts what one device's training spends, and a fleet goes on from the work of "
                "others: the two are not built together; leave one of them out"
            )
        plain = self.fleet.averages_ends and self.fleet.aggregate == "plain"
        if plain and not self.share_ends:
            raise _refuse(
                'fleet.aggregate = "plain" lets the worker see every device\'s head and tail: '
                'set share_ends = true to allow that, or ends = "own" to keep them'
            )
        if self.share_ends and not plain:
            raise _refuse('share_ends: nothing takes the ends here; it belongs to fleet.aggregate = "plain"')
        return self

    @model_validator(mode="after")
    def _dp_fits(self) -> Self:
        dp = self.privacy.dp
        if dp is None:
            return self
        if dp.expected_batch > self.batch_size:
            raise _refuse(
                "[privacy.dp] expected_batch is more than batch_size, the most that a batch may have"
            )
        reasons = {
            "name two cuts: with one the worker has the labels": self.single,
            "samples are clipped one by one: leave micro_batches out": self.micro_batches > 1,
            "samples are clipped one by one: leave [clip] out": self.clip is not None,
            "a step that passes without effect tells of its samples: leave on_non_finite out": (
                self.durability.on_non_finite != "stop"
            ),
            "the loss of one sample is needed: name a loss": self.loss.name is None,
            f"a codec that packs samples together lets one change another; use {', '.join(ELEMENTWISE)}": any(
                codec not in ELEMENTWISE for codecs in self.link.codecs.values() for codec in codecs
            ),
        }
        for why, found in reasons.items():
            if found:
                raise _refuse(f"[privacy.dp]: {why}")
        return self

    @property
    def defended(self) -> bool:
        """Return whether a device changes what crosses the cuts, or the labels that it trains on."""
        return any(getattr(self.privacy, key) for key in DEFENCES)

    @property
    def single(self) -> bool:
        """One cut: head on the device, body and loss on the worker, no tail."""
        return self.share_labels if self.model.auto else len(self.model.cuts) == 1

    def to_json(self) -> bytes:
        """Canonical JSON, every default written out: equal specs give equal bytes.

        `plan` and `privacy.limits` are left out: a training depends on its cuts, not on what they were
        chosen for, nor on what is measured of it. So are an absent `data`, unused defences and what belongs
        to rounds where there are none, which older versions do not know.
        """
        unused = {key for key in DEFENCES if not getattr(self.privacy, key)}
        left_out: dict[str, Any] = {"plan": True, "privacy": {"limits", *unused}}
        if self.data is None:
            left_out["data"] = True
        if not self.fleet.averages:
            left_out["fleet"] = set(FleetSpec.model_fields) - {"mode"}
        if not self.share_ends:
            left_out["share_ends"] = True
        return orjson.dumps(self.model_dump(mode="json", exclude=left_out), option=orjson.OPT_SORT_KEYS)
