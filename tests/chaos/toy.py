"""The jobs that chaos trains: batch norm, dropout, momentum, a short batch, several frames a request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from broker.protocol import messages as m
from broker.protocol.envelope import encode_parts
from broker.protocol.frames import to_frames
from spliteasy.job import Job, JobSpec
from tests.simulation.toy import State, train_alone

DATA = "tests.chaos.toy:device_data"
BATCH, WIDTH = 8, 256
SAMPLES = 76
"""9 whole batches and one of 4."""

STEPS_PER_EPOCH, EPOCHS = 10, 10
CHUNK_BYTES = 4096
"""A FORWARD or BACKWARD is three frames."""

TWO_CUTS, SINGLE, LOSSY, AUTO, MICRO = "chaos", "chaos-single", "chaos-lossy", "chaos-auto", "chaos-micro"
PRIVATE, FROZEN = "chaos-private", "chaos-frozen"
JOBS = (AUTO, PRIVATE, MICRO, TWO_CUTS, SINGLE, LOSSY, FROZEN)
"""Single: one cut and shared labels. Lossy: what the codecs leave out is carried over to later steps. Micro:
batches in two parts, on labels that other samples give. Auto: batches in two parts, the device chooses the
codecs by its link, and noise is on all that it sends. Private: DP-SGD.
Frozen: the body trains so little that a step's state is smaller than its requests."""

SPLITFED, SHARED, RELAY = "chaos-splitfed", "chaos-shared", "chaos-relay"
_ROUNDS = {"round_steps": 6, "deadline": "15s"}
FLEETS: dict[str, dict[str, object]] = {
    SPLITFED: {"mode": "splitfed", "quorum": 1, "aggregate": "plain", **_ROUNDS},
    SHARED: {"mode": "shared", "quorum": 1, "aggregate": "plain", **_ROUNDS},
    RELAY: {"mode": "relay", **_ROUNDS},
}
"""Jobs whose devices train one model. The ends of a relay travel sealed."""
FLEET_EPOCHS = 2
"""The epochs of a fleet that is one of many: each of its windows and turns waits for the store."""


def fleet_number(number: int) -> str:
    """Return the name of the job of one more fleet: the modes come round."""
    return f"{tuple(FLEETS)[number % len(FLEETS)]}-{number}"


def fleet_of(name: str) -> dict[str, object] | None:
    """Return the settings of the fleet of a job of that name; None: its devices train alone."""
    return next((about for base, about in FLEETS.items() if name.startswith(base)), None)


LINKS: dict[str, dict[str, object]] = {
    LOSSY: {"activations": "int8", "gradients": "topk:0.3"},
    AUTO: {"activations": "auto", "gradients": "auto", "allow": ("lossless", "topk:0.3", "int8", "fp32")},
}

DEFENCES: dict[str, dict[str, object]] = {
    AUTO: {
        "clip_activations": 20.0,
        "noise_activations": 0.01,
        "gradient_noise": 0.3,
        "nopeek": 0.5,
        "label_dp": 2.0,
    },
    MICRO: {"preset": "strict"},
    PRIVATE: {"dp": {"noise_multiplier": 1.0, "expected_batch": BATCH}},
}


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, WIDTH),
        nn.BatchNorm1d(WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 16),
        nn.Dropout(0.3),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, WIDTH),
        nn.ReLU(),
        nn.Linear(WIDTH, 3),
    )


def build_private() -> nn.Module:
    """The same without what mixes samples."""
    layers = build().children()
    return nn.Sequential(
        *(nn.GroupNorm(4, x.num_features) if isinstance(x, nn.BatchNorm1d) else x for x in layers)
    )


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(BATCH, 12), torch.zeros(BATCH, dtype=torch.int64)


def device_data(device: str) -> tuple[Dataset[tuple[Tensor, ...]], Dataset[tuple[Tensor, ...]]]:
    generator = torch.Generator().manual_seed(int(device.rpartition("-")[2]))
    inputs = torch.randn(SAMPLES, 12, generator=generator)
    targets = torch.randint(0, 3, (SAMPLES,), generator=generator)
    return TensorDataset(inputs, targets), TensorDataset(inputs[:12], targets[:12])


@cache
def job(name: str) -> Job:
    """The job of that name. `STEPS_PER_EPOCH` steps an epoch."""
    fleet = fleet_of(name)
    spec = JobSpec.model_validate(
        {
            "name": name,
            "seed": 7,
            "batch_size": SAMPLES if name == PRIVATE else BATCH,
            "micro_batches": 2 if name in (AUTO, MICRO) else 1,
            "epochs": EPOCHS if fleet is None or name in FLEETS else FLEET_EPOCHS,
            "share_labels": name == SINGLE,
            "share_body": True,
            "model": {
                "factory": f"tests.chaos.toy:{'build_private' if name == PRIVATE else 'build'}",
                "example": "tests.chaos.toy:example",
                "cuts": ("2",) if name == SINGLE else ("2", "7"),
            },
            "loss": {"name": "cross_entropy"},
            "optimizer": {
                "name": "sgd",
                "lr": 0.05,
                "momentum": 0.9,
                "groups": [{"pattern": "[37].*", "frozen": True}] if name == FROZEN else [],
            },
            "durability": {"checkpoint_every": 5, "snapshot_every_steps": 20, "checkpoint_history": 2},
            "evaluation": {"every_epochs": 5 if fleet is None or name in FLEETS else 1},
            "privacy": DEFENCES.get(name, {}),
            "link": {"chunk_bytes": CHUNK_BYTES, **LINKS.get(name, {})},
            **({} if fleet is None else {"fleet": fleet, "share_ends": "aggregate" in fleet}),
        }
    )
    return Job.create(spec)


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """The result of a training without a wire."""

    own: State
    """The device's side."""
    body: State
    bytes_up: int
    """The bytes of the frames of all FORWARDs and BACKWARDs, each sent once."""


@cache
def undisturbed(device: str, name: str, secret: bytes, chosen: bytes | None) -> Undisturbed:
    """`secret`: the device's own. `chosen`: what it has written down of its choice of codecs."""
    sizes: list[int] = []

    def count(request: m.Request) -> None:
        frames = to_frames(encode_parts(request), message_id=request.request, chunk_bytes=CHUNK_BYTES)
        sizes.extend(len(frame) for frame in frames)

    own, body, _ = train_alone(job(name), DATA, device, secret=secret, sent=count, chosen=chosen)
    return Undisturbed(own, body, sum(sizes))
