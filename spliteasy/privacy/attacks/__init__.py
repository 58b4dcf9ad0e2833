"""All attacks, by name: one small file an idea."""

from __future__ import annotations

from spliteasy.privacy.attacks.base import Attack
from spliteasy.privacy.attacks.clusters import ClusterGradients, ClusterOutputs, Cosine, Norm, Spectral
from spliteasy.privacy.attacks.decoders import ConvolutionalDecoder, LinearDecoder
from spliteasy.privacy.attacks.evaluations import EvaluationInversion, EvaluationLabels, EvaluationLinkage
from spliteasy.privacy.attacks.few_labels import FewLabels
from spliteasy.privacy.attacks.guarding import HijackGuard
from spliteasy.privacy.attacks.head_tracking import HeadTracking
from spliteasy.privacy.attacks.hijacking import Fsha
from spliteasy.privacy.attacks.inversion import Inversion
from spliteasy.privacy.attacks.linkage import Linkage
from spliteasy.privacy.attacks.membership import Match, Membership
from spliteasy.privacy.attacks.property_inference import PropertyInference
from spliteasy.privacy.attacks.tail_tracking import TailTracking
from spliteasy.privacy.attacks.tokens import Tokens
from spliteasy.privacy.attacks.unsplit import UnSplit

FSHA = Fsha()
"""The one attack that takes part in a training: it is recorded against on its own."""

ATTACKS: tuple[Attack, ...] = (
    TailTracking(),
    ClusterGradients(),
    ClusterOutputs(),
    Norm(),
    Cosine(),
    Spectral(),
    FewLabels(),
    HeadTracking(),
    Inversion(),
    UnSplit(),
    LinearDecoder(),
    ConvolutionalDecoder(),
    Tokens(),
    PropertyInference(),
    Linkage(),
    EvaluationLabels(),
    EvaluationInversion(),
    EvaluationLinkage(),
    EvaluationLabels("prediction"),
    EvaluationInversion("prediction"),
    EvaluationLinkage("prediction"),
    Membership(),
    Match(),
    FSHA,
    HijackGuard(),
)
"""The attacks, in the order of the table."""

__all__ = ["ATTACKS", "FSHA", "Attack"]
