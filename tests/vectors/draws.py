"""Vectors of every random draw that depends on a device's secret, and of the digests that the wire names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from device_agent.training.ends import job_key, label_key
from spliteasy.privacy.defences.label_dp import RandomizedResponse
from spliteasy.privacy.defences.transforms import CutTransforms, strong_digest
from spliteasy.privacy.ends import draw, perturb
from spliteasy.privacy.numbers import fill, permutation
from spliteasy.runtime.randomness import Key, drawing, seed_of, state_of
from spliteasy.training.digest import digest_of
from tests.simulation import toy

SECRET = bytes(range(32))
DEVICE, JOB = "phone-1", "ab" * 32
LAWS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("uniform", (-0.5, 0.25)),
    ("normal", (0.0, 0.02)),
    ("trunc_normal", (0.0, 1.0, -2.0, 2.0)),
    ("trunc_normal", (0.0, 1.0, 3.0, 4.0)),
    ("bernoulli", (0.3,)),
    ("exponential", (2.0,)),
    ("integers", (-3.0, 9.0)),
)


ROUNDED = {"normal", "trunc_normal", "exponential"}
"""Laws whose numbers pass through logarithms, sines or the inverse of a distribution function, which
libraries and processors round differently in the last bit."""


def close(tensor: Tensor) -> dict[str, Any]:
    """As `bits`, of numbers that need not agree in the last bits: each within 1e-6 of the largest."""
    return {**bits(tensor), "within": 1e-6}


def bits(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype and the little-endian bytes of a tensor's elements in row-major order."""
    flat = tensor.detach().contiguous().as_strided((tensor.numel(),), (1,))
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "bytes": flat.view(torch.uint8).numpy().tobytes().hex(),
    }


def keys() -> dict[str, Any]:
    """Derived keys by their streams; seeds that are no secret."""
    places: list[list[str | int]] = [
        [], ["a"], ["a", 1], ["a", "1"], ["a1"], ["a", "", 12345678901], ["ä"], [0], ["device", DEVICE],
    ]  # fmt: skip
    root = Key(SECRET)
    return {
        "secret": SECRET.hex(),
        "keys": [{"parts": place, "stream": root.at(*place).stream(40).hex()} for place in places],
        "chained": {"parts": [["a"], [1]], "stream": root.at("a").at(1).stream(40).hex()},
        "job_key": {
            "device": DEVICE,
            "job": JOB,
            "stream": job_key(SECRET, device=DEVICE, job=JOB).stream(40).hex(),
        },
        "label_key": {"stream": label_key(SECRET).stream(40).hex()},
        "seeds": [{"parts": place, "seed": str(seed_of(*place))} for place in places],
    }


def numbers() -> dict[str, Any]:
    """Numbers of each law, in both precisions, also over the border of two streams."""
    found = []
    for law, args in LAWS:
        for dtype, count in ((torch.float32, 9), (torch.float64, 4)):
            out = torch.empty(count, dtype=dtype)
            fill(out, law, args, Key(SECRET).at(law))
            found.append(
                {"law": law, "args": args, "key": [law], "out": (close if law in ROUNDED else bits)(out)}
            )
    long = torch.empty((1 << 18) + 2)
    fill(long, "uniform", (0.0, 1.0), Key(SECRET).at("long"))
    orders = [
        {"key": ["order", count], "order": permutation(count, Key(SECRET).at("order", count)).tolist()}
        for count in (1, 2, 20)
    ]
    return {
        "laws": found,
        "second_stream": {"key": ["long"], "count": long.numel(), "last_three": bits(long[-3:])},
        "permutations": orders,
    }


def device() -> dict[str, Any]:
    """What a device draws in a training: order, ends, masks, noise, answers for its labels."""
    key = job_key(SECRET, device=DEVICE, job=JOB)
    job = toy.job(toy.Variant(privacy=(*toy.NOISY, ("gradient_noise", "max_norm"))))
    transforms = CutTransforms(job.spec.privacy, key, head=job.head, tail=job.tail)
    clean = torch.arange(20, dtype=torch.float32).reshape(4, 5) / 8 - 1
    answers = RandomizedResponse(1.0, 5, label_key(SECRET).at("fingerprint", "1.0"))
    return {
        "order": {
            "epochs": [permutation(14, key.at("order").at(epoch)).tolist() for epoch in range(3)],
            "evaluation_at_step_5": permutation(6, key.at("evaluation").at(5)).tolist(),
        },
        "ends": {
            "ends.json": job.ends.to_json().decode(),
            "drawn": {
                role: {name: bits(tensor) for name, tensor in table.items()}
                for role, table in draw(job.ends, key.at("ends")).items()
            },
        },
        "perturbed": close(perturb(clean, 0.1, key.at("perturb", "layer.weight"))),
        "masks": [_mask(key, role, step, micro) for role, step, micro in (("head", 1, 0), ("tail", 7, 2))],
        "noise": {
            "settings": dict(job.spec.privacy.model_dump(exclude_defaults=True)),
            "clean": bits(clean),
            "activations": close(transforms.activations((clean,), purpose="activations", step=3)[0]),
            "evaluation": close(transforms.activations((clean,), purpose="evaluation", step=3)[0]),
            "gradients": close(_only(transforms.gradients((clean,), step=3))),
        },
        "label_dp": {
            "epsilon": 1.0,
            "classes": 5,
            "labels": [n % 5 for n in range(20)],
            "answers": answers.answer(torch.arange(20) % 5, range(20)).tolist(),
        },
    }


def _only(values: tuple[Tensor | None, ...]) -> Tensor:
    (value,) = values
    assert value is not None
    return value


def _mask(key: Key, role: str, step: int, micro: int) -> dict[str, Any]:
    """A dropout mask: the words of the Mersenne Twister, and what torch draws from it."""
    own = key.at("mask", role, step, micro)
    with drawing(state_of(own)):
        kept = torch.nn.functional.dropout(torch.ones(32), 0.3)
    return {
        "key": ["mask", role, step, micro],
        "first_words": np.frombuffer(own.stream(16), "<u4").tolist(),
        "p": 0.3,
        "kept": kept.ne(0).int().tolist(),
    }


def digests() -> dict[str, Any]:
    """The digest that BACKWARD names of the outputs it belongs to, and that of clean tensors."""
    rows = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    long = torch.arange(5000, dtype=torch.float32)
    cases: list[tuple[str, tuple[Tensor | int | None, ...]]] = [
        ("nothing", ()),
        ("a tensor", (rows,)),
        ("the same elements in another order of dimensions", (rows.t(),)),
        ("integers and null", (rows, 4, None)),
        ("more than one row of words", (long,)),
        ("half precision", (rows.half(),)),
    ]
    return {
        "digests": [
            {
                "name": name,
                "values": [bits(value) if isinstance(value, Tensor) else value for value in values],
                "digest": digest_of(values),
            }
            for name, values in cases
        ],
        "strong": [{"value": bits(value), "digest": strong_digest(value)} for value in (rows, rows.half())],
    }
