"""Sealed sums and handovers as Python makes them: for the tests of the browser's agent."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

from spliteasy.fleet.handover import seal_handover
from spliteasy.fleet.sealed import SealedPart, added_up, fraction_bits, seal, unseal
from spliteasy.job.spec import JobSpec
from spliteasy.runtime.randomness import Key
from tests.web.cases import packed

KEY = Key(bytes(range(1, 33)))
ROUND, TURN = 4, 7
FLEETS: tuple[dict[str, Any], ...] = (
    {"mode": "splitfed", "round_steps": 3},
    {"mode": "splitfed", "round_epochs": 1, "weights": "equal"},
    {"mode": "shared", "round_epochs": 2, "max_samples": 1000},
    {"mode": "relay"},
)


def sealed_rounds() -> dict[str, Any]:
    """Return a sum of three devices, a handover, and the places behind the point of several fleets."""
    torch.manual_seed(3)
    like = {
        "head/model/w": torch.randn(3, 4),
        "tail/model/b": torch.randn(5),
        "tail/model/w": torch.randn(2, 2),
    }
    bits = fraction_bits(_spec(FLEETS[0]), 3)
    devices = []
    for number, weight in enumerate((12, 7, 1)):
        tensors = {name: 3 * torch.randn_like(tensor) for name, tensor in like.items()}
        part = SealedPart(f"phone-{number}", f"nonce-{number}", weight)
        devices.append((part, tensors, seal(tensors, part, key=KEY, round_=ROUND, bits=bits)))
    total = added_up([sealed for *_, sealed in devices])
    parts = [part for part, *_ in devices]
    mean = unseal(total, parts, like, key=KEY, round_=ROUND, bits=bits)
    handed = {**like, "head/optimizer/w/step": torch.tensor(5.0), "tail/model/n": torch.tensor(9)}
    sealed = seal_handover(handed, key=KEY, device="phone-1", turn=TURN, nonce="n")
    return {
        "bits": bits,
        "devices": [
            {
                "part": {"device": p.device, "nonce": p.nonce, "weight": p.weight},
                "tensors": _named(x),
                "sealed": packed(y),
            }
            for p, x, y in devices
        ],
        "total": packed(total),
        "mean": _named(mean),
        "handed": _named(handed),
        "handover": base64.b64encode(bytes(sealed.tolist())).decode(),
        "fleets": [
            {"fleet": fleet, "bits": [fraction_bits(_spec(fleet), count) for count in (1, 2, 3, 100)]}
            for fleet in FLEETS
        ],
    }


def _named(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: packed(tensor) for name, tensor in tensors.items()}


def _spec(fleet: dict[str, Any]) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "web",
            "seed": 1,
            "batch_size": 4,
            "epochs": 1,
            "model": {"factory": "tests.web:none", "example": "tests.web:none", "cuts": ("a", "b")},
            "loss": {"name": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": 0.1},
            "fleet": fleet,
        }
    )
