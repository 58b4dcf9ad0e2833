"""A job file as a whole: its sections, and what holds between them."""

from __future__ import annotations

from typing import Annotated, Any, Self

import orjson
from pydantic import AfterValidator, Field, model_validator

from spliteasy.job.micro_batches import MAX_MICRO_BATCHES
from spliteasy.job.spec.fleet import FleetSpec
from spliteasy.job.spec.model import LossSpec, ModelSpec
from spliteasy.job.spec.optimizer import ClipSpec, ConstantSpec, OptimizerSpec, ScheduleSpec
from spliteasy.job.spec.privacy import DEFENCES, PrivacySpec
from spliteasy.job.spec.running import DataSpec, DurabilitySpec, EvaluationSpec, LinkSpec, PlanSpec
from spliteasy.job.spec.values import (
    ELEMENTWISE,
    MAX_SEED,
    TOP_LEVEL,
    Count,
    Identifier,
    Name,
    Section,
    only,
    refuse,
    unique,
)
from spliteasy.training.losses import CLASS_LOSSES, IGNORED_CLASS

MAX_ACCUMULATED = 1 << 12


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
    accumulate: Annotated[int, Field(ge=1, le=MAX_ACCUMULATED)] = 1
    """Batches whose gradients are added up, each divided by this number, before the optimizer steps."""
    precision: Annotated[str, only("fp32", "bf16", planned=("fp16", "mixed"))] = "fp32"
    """`bf16`: the model runs under autocast to bfloat16, and weights and optimizer stay float32."""
    share_inputs: Annotated[tuple[Name, ...], Field(max_length=16), AfterValidator(unique)] = ()
    """Inputs that may leave the device, by name."""
    share_labels: bool = False
    """Labels leave the device: what single split (one cut) needs, since the worker computes the loss."""
    share_loss: bool = False
    """The device reports its training loss, a number per step, for the curves that `spliteasy dashboard`
    draws, and in a fleet the accuracy on its test data. With one cut the worker computes the loss anyway."""
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
            raise refuse(
                f"micro_batches: a batch of {self.batch_size} can't be split into {self.micro_batches}; "
                f"use at most {self.batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _whole_windows(self) -> Self:
        """Refuse what would leave weights or averages of them that no plain program has."""
        reasons = {
            "accumulate = 1, the default": self.accumulate > 1,
            "optimizer.ema left out": self.optimizer.ema is not None,
        }
        if self.evaluation.judges and self.fleet.has_rounds:
            raise refuse(
                "evaluation.patience and keep_best choose the end of one device's training, and the rounds "
                "of [fleet] need their devices: leave them out"
            )
        for instead, found in reasons.items():
            if found and self.fleet.has_rounds:
                raise refuse(
                    "a round of [fleet] ends between two steps of the optimizer, and its mean is of the "
                    f"weights alone: use {instead}"
                )
        if self.accumulate > 1 and self.privacy.dp is not None:
            raise refuse(
                "[privacy.dp] adds noise to each batch: use a larger expected_batch in place of accumulate"
            )
        if self.accumulate > 1 and self.durability.on_non_finite == "skip":
            raise refuse(
                "a batch that passes without effect would leave a sum of fewer batches than accumulate: use "
                'on_non_finite = "stop", or a larger batch_size in place of accumulate'
            )
        return self

    @model_validator(mode="after")
    def _sharing_fits(self) -> Self:
        for name in self.share_inputs:
            if name not in self.model.inputs:
                raise refuse(
                    f"share_inputs: {name!r} is no input; model.inputs has {', '.join(self.model.inputs)}"
                )
        if self.single and not self.share_labels:
            raise refuse(
                "with one cut the server computes the loss, so labels leave the device: "
                "set share_labels = true, or name two cuts to keep them"
            )
        if self.share_labels and not self.single:
            raise refuse("share_labels: with two cuts labels stay on the device; remove share_labels")
        if self.fleet.has_rounds and self.privacy.dp is not None:
            raise refuse(
                "privacy.dp counts what one device's training spends, and a fleet goes on from the work of "
                "others: the two are not built together; leave one of them out"
            )
        plain = self.fleet.ends_leave and self.fleet.aggregate == "plain"
        if plain and not self.share_ends:
            raise refuse(
                'fleet.aggregate = "plain" lets the worker see every device\'s head and tail: '
                "set share_ends = true to allow that, or leave aggregate out to seal them"
            )
        if self.share_ends and not plain:
            raise refuse('share_ends: nothing takes the ends here; it belongs to fleet.aggregate = "plain"')
        return self

    @model_validator(mode="after")
    def _precision_fits(self) -> Self:
        if self.precision == "bf16" and (self.defended or self.privacy.dp is not None):
            raise refuse(
                'precision = "bf16" and defences of [privacy] are not built together: leave one of them out'
            )
        return self

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        if self.model.max_length is None:
            return self
        privacy, codecs = self.privacy, [name for names in self.link.codecs.values() for name in names]
        reasons = {
            "[privacy] shuffle_tokens moves places that padding has: leave it out": privacy.shuffle_tokens,
            "[privacy] peer_labels compares samples of one shape: leave it out": privacy.peer_labels,
            "[privacy] nopeek compares samples of one shape: leave it out": privacy.nopeek is not None,
            "[privacy] marvell compares gradients of one shape: leave it out": privacy.marvell is not None,
            "[privacy.dp] takes samples one by one: leave it out": privacy.dp is not None,
            "the rounds of [fleet] are not built for it: leave one of them out": self.fleet.has_rounds,
            "[data] reads pictures, which have no length: leave one of them out": self.data is not None,
            "topk holds back what belongs to one shape: use another codec": any(
                codec.startswith("topk") for codec in codecs
            ),
        }
        for why, found in reasons.items():
            if found:
                raise refuse(f"model.max_length: {why}")
        if self.loss.name in CLASS_LOSSES:
            for name in self.model.targets:
                if self.model.pad.get(name, IGNORED_CLASS) != IGNORED_CLASS:
                    raise refuse(
                        f"model.pad: {name} is padded with {self.model.pad[name]}, a class that the loss "
                        f"counts; pad labels with {IGNORED_CLASS}"
                    )
        return self

    @model_validator(mode="after")
    def _dp_fits(self) -> Self:
        dp = self.privacy.dp
        if dp is None:
            return self
        if dp.expected_batch > self.batch_size:
            raise refuse(
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
                raise refuse(f"[privacy.dp]: {why}")
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
        """Return canonical JSON, every default written out: equal specs give equal bytes.

        `plan` and `privacy.limits` are left out: a training depends on its cuts, not on what they were
        chosen for, nor on what is measured of it. So are an absent `data`, unused defences and what belongs
        to rounds where there are none, which older versions do not know.
        """
        unused = {key for key in DEFENCES if not getattr(self.privacy, key)}
        left_out: dict[str, Any] = {"plan": True, "privacy": {"limits", *unused}}
        if self.data is None:
            left_out["data"] = True
        if not self.fleet.has_rounds:
            left_out["fleet"] = set(FleetSpec.model_fields) - {"mode"}
        if self.link.cache:
            left_out["link"] = {"cache"}
        if not self.share_ends:
            left_out["share_ends"] = True
        if unused_lengths := self.model.left_out():
            left_out["model"] = unused_lengths
        if self.accumulate == 1:
            left_out["accumulate"] = True
        if self.optimizer.ema is None:
            left_out["optimizer"] = {"ema"}
        if unused := self.evaluation.unused:
            left_out["evaluation"] = unused
        return orjson.dumps(self.model_dump(mode="json", exclude=left_out), option=orjson.OPT_SORT_KEYS)


TOP_LEVEL.update(JobSpec.model_fields)
