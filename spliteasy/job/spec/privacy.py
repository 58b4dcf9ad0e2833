"""The section `[privacy]` of a job file: limits, defences and differential privacy."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from spliteasy.job.spec.values import Count, NonNegative, Positive, Section, Share, only, refuse


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
            raise refuse("give either epsilon or noise_multiplier")
        return self


STRICT: dict[str, Any] = {"peer_labels": True}
"""The settings of `preset = "strict"`, found by measuring (docs/privacy.md)."""
DEFENCES = (
    "preset",
    "clip_activations",
    "noise_activations",
    "gradient_noise",
    "marvell",
    "shuffle_tokens",
    "nopeek",
    "label_dp",
    "peer_labels",
    "dp",
)
"""The keys of `[privacy]` that change what crosses the cuts."""


class PrivacySpec(Section):
    """Settings of what the other side may learn (docs/privacy.md)."""

    ends: Annotated[str, only("secret", "perturb", "public")] = "secret"
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
    marvell: Positive | None = None
    """The mean power of normal noise on the gradients that a device sends, under which two classes are told
    apart the least, in units of the squared distance of the classes' mean gradients."""
    shuffle_tokens: bool = False
    """The tokens or patches of a sample cross in an order that only the device knows, and come back into
    their own behind the second cut. It takes bodies that treat all positions alike."""
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

    @property
    def noisy_gradients(self) -> bool:
        """Return whether the gradients that a device sends have noise."""
        return self.gradient_noise is not None or self.marvell is not None

    @model_validator(mode="after")
    def _one_noise_on_gradients(self) -> Self:
        if self.gradient_noise is not None and self.marvell is not None:
            raise refuse("gradient_noise and marvell are both noise on the same gradients: choose one")
        return self

    @model_validator(mode="after")
    def _noise_has_a_clip(self) -> Self:
        if self.noise_activations and self.clip_activations is None:
            raise refuse("noise_activations is in units of clip_activations: set that too")
        return self

    @model_validator(mode="after")
    def _dp_stands_alone(self) -> Self:
        changed = self.clip_activations is not None or self.noisy_gradients or self.shuffle_tokens
        if self.dp and (changed or self.nopeek):
            raise refuse(
                "dp clips each sample's gradients and adds its own noise: leave clip_activations, "
                "gradient_noise, marvell, shuffle_tokens and nopeek out"
            )
        if self.dp and self.peer_labels:
            raise refuse("with peer_labels one sample moves the labels of others, which dp does not count")
        return self

    @model_validator(mode="after")
    def _perturb_is_used(self) -> Self:
        if self.ends != "perturb" and self.perturb != type(self).model_fields["perturb"].default:
            raise refuse('perturb belongs to ends = "perturb"')
        return self
