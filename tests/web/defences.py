"""What crosses the cuts under `[privacy]`, as Python computes it: for the tests of the browser's agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import torch
from torch import Tensor

from spliteasy.graph.segment import Segment
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.defences import transforms
from spliteasy.privacy.defences.label_dp import RandomizedResponse
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.privacy.ends import perturb
from spliteasy.runtime.randomness import Key
from tests.web.cases import packed

KEY = Key(bytes(range(32)))
STEP = 3
SHARE = 0.75
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"clip_activations": 1.5},
    {"clip_activations": 1.5, "noise_activations": 0.2},
    {"gradient_noise": "max_norm"},
    {"gradient_noise": 0.5},
    {"marvell": 2.0},
    {"marvell": 0.05},
    {"nopeek": 0.3},
    {"shuffle_tokens": True},
    {"shuffle_tokens": True, "clip_activations": 2.0, "noise_activations": 0.1, "gradient_noise": 0.3},
    {"clip_activations": 0.7, "nopeek": 2.0},
)
EPSILONS = (0.05, 1.0, 2.5, 1e-05)


def defended() -> dict[str, Any]:
    """Return cases of transforms, answers to labels, and weights that were moved."""
    torch.manual_seed(9)
    weights = torch.randn(3, 5)
    return {
        "cuts": list(_cuts()),
        "answers": [_answers(epsilon) for epsilon in EPSILONS],
        "perturbed": {
            "value": packed(weights),
            "moved": packed(perturb(weights, 0.1, KEY.at("perturb", "w"))),
        },
    }


def _cuts() -> Iterator[dict[str, Any]]:
    for settings in SETTINGS:
        for labels in ([0, 1, 1, 0, 1], [1, 1, 1, 1, 1]):
            yield _cut(settings, torch.tensor(labels))


def _cut(settings: dict[str, Any], labels: Tensor) -> dict[str, Any]:
    spec = PrivacySpec.model_validate(settings)
    made = _transforms(spec)
    inputs = torch.randn(5, 7)
    clean = torch.randn(5, 4, 6).requires_grad_()
    order = made.order((clean,), purpose="activations", step=STEP)
    (sent,) = made.activations((clean,), purpose="activations", step=STEP, order=order)
    down, tail_gradient, came = torch.randn(5, 4, 6), torch.randn(5, 4, 6) * 0.1, torch.randn(5, 4, 6)
    (restored,) = made.in_order((down,), order)
    (up,) = made.gradients((tail_gradient,), (labels,), step=STEP, order=order)
    (returned,) = made.returned((inputs,), (sent.detach(),), (came,), share=SHARE)
    sent.backward(returned)
    return {
        "settings": settings,
        "inputs": packed(inputs),
        "clean": packed(clean),
        "sent": packed(sent),
        "labels": packed(labels),
        "down": packed(down),
        "restored": packed(restored),
        "tail_gradient": packed(tail_gradient),
        "up": packed(up),
        "came": packed(came),
        "returned": packed(clean.grad),
    }


def _transforms(spec: PrivacySpec) -> CutTransforms:
    """The transforms without a look at segments, which these cases have none of."""
    looked, transforms.check_transforms = transforms.check_transforms, lambda *_: None
    try:
        return CutTransforms(spec, KEY, head=Mock(spec=Segment), tail=None)
    finally:
        transforms.check_transforms = looked


def _answers(epsilon: float) -> dict[str, Any]:
    labels = torch.arange(40) % 4
    own = KEY.at("labels", "fingerprint", f"{epsilon!r}")
    answers = RandomizedResponse(epsilon, 4, own).answer(labels, range(40))
    return {"epsilon": epsilon, "labels": labels.tolist(), "answers": answers.tolist()}
