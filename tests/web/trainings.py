"""Heads and tails of the networks that tests split, trained for some steps in PyTorch, step by step."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from spliteasy.graph.document import Value
from spliteasy.graph.segment import Segment
from spliteasy.graph.tensors import tensors_to_bytes
from spliteasy.job import JobSpec
from spliteasy.runtime.randomness import Key
from spliteasy.splitting.export import trace_model
from spliteasy.splitting.losses import PortableLoss, trace_function
from spliteasy.splitting.split import split_traced
from spliteasy.training.losses import LOSSES
from spliteasy.training.segment_trainer import SegmentTrainer, backward_from
from tests.splitting.networks import SMALL, Network
from tests.web.cases import packed

Settings = dict[str, Any]
KEY = bytes(range(32))
STEPS, MORE_STEPS = 3, 8
"""Steps of each training, and where it adds up the gradients of several batches."""
SETTINGS: Sequence[Settings] = (
    {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}},
    {
        "optimizer": {"name": "adam", "lr": 0.01, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "steps": 5, "warmup_steps": 2},
    },
    {
        "optimizer": {
            "name": "adamw",
            "lr": 0.01,
            "groups": ({"pattern": "*.bias", "weight_decay": 0.0}, {"pattern": "*norm*", "lr": 0.001}),
        },
        "clip": {"max_norm": 0.5},
    },
    {
        "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.5, "dampening": 0.2},
        "schedule": {"name": "step", "step_size": 2},
    },
    {"optimizer": {"name": "rmsprop", "lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.01}},
    {"optimizer": {"name": "rmsprop", "lr": 0.01, "ema": 0.3}, "clip": {"max_norm": 0.5}},
    {
        "optimizer": {"name": "adagrad", "lr": 0.05, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
        "accumulate": 2,
    },
    {
        "optimizer": {"name": "lion", "lr": 0.01, "weight_decay": 0.1, "ema": 0.9},
        "schedule": {"name": "step", "step_size": 1, "gamma": 0.5},
        "accumulate": 3,
    },
)
"""Optimizers, schedules and clipping of a job."""


SELECTED: Sequence[tuple[str, tuple[str, str], int]] = (
    ("chain", ("stem", "pool"), 0),
    ("dense", ("enter", "layers.0.1"), 1),
    ("unet", ("down1", "up1"), 2),
    ("gpt with dropout", ("blocks.0.norm2", "blocks.2.norm1"), 3),
    ("masked transformer", ("layer1.self_attn", "layer2.norm1"), 0),
    ("written in place", ("act#1", "c"), 1),
    ("frozen", ("a", "norm"), 2),
    ("dense", ("enter", "layers.0.1"), 4),
    ("chain", ("stem", "pool"), 5),
    ("dense", ("enter", "layers.0.1"), 6),
    ("frozen", ("a", "norm"), 7),
)
"""Networks with their cuts and the number of their settings.

Attention goes without Adam, which makes large steps of rounding errors where a gradient is 0.
"""


def trainings() -> Iterator[dict[str, Any]]:
    """The heads and tails of the selected networks."""
    for name, cuts, settings in SELECTED:
        torch.manual_seed(settings)
        yield from _of_network(
            f"{name} {cuts[0]} to {cuts[1]}, settings {settings}", SMALL[name], cuts, SETTINGS[settings]
        )


def _of_network(
    name: str, network: Network, cuts: tuple[str, str], settings: Settings
) -> Iterator[dict[str, Any]]:
    batch = network.batch(4)
    head, body, tail = split_traced(trace_model(network.make(), network.batch(2)), cuts).segments
    with torch.no_grad():
        first = head.spawn()(*batch)
        middle = body.spawn()(*first[: head.n_wire])
    kept = first[head.n_wire :]
    yield _trained(f"{name}, head", "head", head, batch, settings)
    yield _trained(f"{name}, tail", "tail", tail, (*middle, *kept), settings)


def _trained(
    name: str, role: str, segment: Segment, values: Sequence[Value], settings: Settings
) -> dict[str, Any]:
    trainer = SegmentTrainer(segment.spawn(), _spec(settings), device="phone-1", role=role, key=Key(KEY))
    graph, tensors = segment.graph_json(), segment.tensors_bytes()
    steps = []
    loss, targets = _loss_for(role, trainer, values)
    accumulate = settings.get("accumulate", 1)
    for _ in range(STEPS if accumulate == 1 else MORE_STEPS):
        given = [_noisy(value) for value in values]
        opened = trainer.forward(given)
        outputs = [_packed(value) for value in opened.outputs]
        step: dict[str, Any] = {"inputs": [_packed(value) for value in given], "outputs": outputs}
        if loss is None:
            weights = [0.05 * torch.randn_like(o) if _has_grad(o) else None for o in opened.outputs]
            step["weights"] = [_packed(weight) for weight in weights]
            gradients = trainer.backward(opened, weights)
        else:
            value = loss(tuple(opened.outputs), targets)
            backward_from(value, 0.75, accumulate)
            step |= {"loss": float(value.detach()), "targets": [packed(target) for target in targets]}
            gradients = tuple(v.grad if isinstance(v, Tensor) else None for v in opened.inputs)
        step["gradients"] = [_packed(gradient) for gradient in gradients]
        trainer.apply()
        steps.append(step)
    return {
        "name": name,
        "role": role,
        "settings": settings,
        "graph": _text(graph),
        "tensors": _text(tensors),
        "loss": _of_loss(loss),
        "steps": steps,
        "evaluated": [_packed(value) for value in trainer.evaluate(list(values))],
        "inputs": [_packed(value) for value in values],
        "state": _text(tensors_to_bytes(trainer.snapshot())),
    }


def _loss_for(role: str, trainer: SegmentTrainer, values: Sequence[Value]) -> tuple[Any, tuple[Tensor, ...]]:
    """A loss by name, or a function of one's own, where the tail gives one score for each of some classes."""
    specs = trainer.segment.output_values
    if role != "tail" or len(specs) != 1 or len(specs[0].shape) != 2:
        return None, ()
    scores = trainer.evaluate(list(values))[0]
    assert isinstance(scores, Tensor)
    targets = (torch.randint(0, scores.shape[1], (scores.shape[0],)),)
    if scores.shape[1] % 2:
        return LOSSES["cross_entropy"], targets
    return trace_function(_own_loss, (scores,), targets), targets


def _own_loss(scores: Tensor, labels: Tensor) -> Tensor:
    likely = torch.log_softmax(scores, dim=1).gather(1, labels[:, None])
    return 0.1 * scores.square().mean() - likely.mean()


def _of_loss(loss: Any) -> Any:
    if isinstance(loss, PortableLoss):
        return {
            "graph": _text(loss.graph_json()),
            "tensors": _text(tensors_to_bytes(loss.tensors())),
            "targets": 1,
        }
    return None if loss is None else {"name": "cross_entropy"}


def _spec(settings: Settings) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "web",
            "seed": 1,
            "batch_size": 4,
            "epochs": 1,
            "model": {"factory": "tests.web:none", "example": "tests.web:none", "cuts": ("a", "b")},
            "loss": {"name": "cross_entropy"},
            **settings,
        }
    )


def _noisy(value: Value) -> Value:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value + 0.1 * torch.randn_like(value)
    return value


def _has_grad(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _packed(value: object) -> Any:
    return packed(value) if isinstance(value, Tensor) else value


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
