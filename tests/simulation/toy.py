"""The smallest training that can go wrong in every way: batch norm, dropout, momentum, a short batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from broker.protocol import messages as m
from device_agent.link.speed import LinkSpeed
from device_agent.training.codec_policy import BySpeed, CodecChooser, StepChoices, Values
from device_agent.training.data import BatchOrder, EvaluationBatches, load_dataset
from device_agent.training.ends import draw_ends, job_key, label_key
from device_agent.training.trainer import DeviceTrainer, NotFiniteOnDevice
from server_worker.replica.direct_body import DirectBody
from spliteasy.errors import DataError
from spliteasy.job import Job, JobSpec
from spliteasy.job.spec import LinkSpec
from spliteasy.training.segment_trainer import NotFinite
from tests.drawn import SECRET


@dataclass(frozen=True, slots=True)
class Variant:
    """A toy job: one cut or two, the codecs, what a gradient that is not finite does, how long.

    No micro-batch has one sample: batch norm makes no variance of it.
    """

    single: bool = False
    on_non_finite: str = "stop"
    activations: str = "fp32"
    gradients: str = "fp32"
    allow: tuple[str, ...] = ()
    epochs: int = 3
    batch: int = 4
    micro_batches: int = 1
    share_loss: bool = True
    exactness: str = "bits"
    privacy: tuple[tuple[str, object], ...] = ()
    factory: str = "tests.simulation.toy:build"
    optimizer: tuple[tuple[str, object], ...] = (("name", "sgd"), ("lr", 0.1), ("momentum", 0.9))
    fleet: tuple[tuple[str, object], ...] = ()
    accumulate: int = 1
    evaluation: tuple[tuple[str, object], ...] = ()
    lengths: bool = False
    """Samples have lengths of their own."""

    @property
    def data(self) -> str:
        """The function that gives the devices' data."""
        return f"tests.simulation.toy:device_{'texts' if self.lengths else 'data'}"

    @property
    def auto(self) -> bool:
        """The device chooses codecs as it goes: what comes out depends on the choices."""
        return bool(self.allow)


NOISY = (("clip_activations", 1.5), ("noise_activations", 0.1))
DP = ("dp", (("noise_multiplier", 1.0), ("expected_batch", 4)))

SAMPLES, BATCH = 14, 4
LONGEST, TEXTS = 6, "tests.simulation.toy:build_texts"
PRIVATE = Variant(
    batch=SAMPLES, epochs=2, factory="tests.simulation.toy:build_private", privacy=(DP, ("label_dp", 2.0))
)
"""DP-SGD: any number of the samples may be drawn, none among them."""

FROZEN_HEAD = Variant(epochs=5, factory="tests.simulation.toy:build_frozen")
"""A head that gives the same rows in each epoch: workers keep them, and devices name them."""
KEEPING = Variant(epochs=6, evaluation=(("every_epochs", 1), ("keep_best", True), ("metrics", ("auc",))))
"""The best evaluation is not the last: `test_best_evaluation.py` looks."""

VARIANTS = (
    Variant(),
    Variant(single=True),
    Variant(activations="int8", gradients="int8", epochs=2),
    Variant(activations="lossless", gradients="topk:0.3", epochs=2),
    Variant(single=True, activations="bf16", gradients="topk:0.3", epochs=2),
    Variant(activations="topk:0.5", gradients="fp16", epochs=2),
    Variant(batch=8, micro_batches=3),
    Variant(batch=5, micro_batches=2, activations="topk:0.5", gradients="topk:0.3", epochs=2),
    Variant(single=True, batch=7, micro_batches=3, activations="int8"),
    Variant(activations="auto", gradients="auto", allow=("lossless", "topk:0.3", "int8", "fp32"), epochs=2),
    Variant(single=True, activations="auto", gradients="auto", allow=("topk:0.4", "bf16", "fp32"), epochs=2),
    Variant(batch=7, micro_batches=3, activations="auto", gradients="auto", allow=("topk:0.4", "int8")),
    Variant(privacy=(*NOISY, ("gradient_noise", "max_norm"), ("label_dp", 1.0))),
    Variant(batch=8, micro_batches=3, privacy=(*NOISY, ("gradient_noise", 0.3)), gradients="int8"),
    Variant(single=True, privacy=(*NOISY, ("label_dp", 3.0)), activations="topk:0.5", epochs=2),
    Variant(privacy=(*NOISY, ("nopeek", 0.5), ("gradient_noise", 0.3)), epochs=2),
    Variant(batch=8, micro_batches=3, privacy=(("nopeek", 2.0), ("peer_labels", True), ("label_dp", 1.0))),
    Variant(privacy=(("preset", "strict"),), epochs=2),
    PRIVATE,
    Variant(
        batch=7,
        micro_batches=2,
        factory="tests.simulation.toy:build_tokens",
        privacy=(*NOISY, ("shuffle_tokens", True), ("gradient_noise", 0.3)),
    ),
    Variant(batch=7, micro_batches=2, factory="tests.simulation.toy:build_two", privacy=(("marvell", 4.0),)),
    Variant(accumulate=3, optimizer=(("name", "rmsprop"), ("lr", 0.01), ("momentum", 0.9), ("ema", 0.7))),
    Variant(batch=5, micro_batches=2, accumulate=2, optimizer=(("name", "adagrad"), ("lr", 0.1))),
    Variant(single=True, accumulate=2, optimizer=(("name", "lion"), ("lr", 0.01), ("ema", 0.9))),
    Variant(epochs=5, evaluation=(("every_epochs", 1), ("patience", 1), ("metrics", ("f1",)))),
    FROZEN_HEAD,
    Variant(
        single=True,
        batch=7,
        micro_batches=3,
        activations="fp16",
        epochs=4,
        factory="tests.simulation.toy:build_frozen",
    ),
    KEEPING,
    Variant(
        single=True, epochs=5, evaluation=(("keep_best", True), ("patience", 2)), batch=7, micro_batches=3
    ),
)
"""The variants that a sweep of seeds goes through in turn."""
WITH_LENGTHS = (
    Variant(lengths=True, batch=7, micro_batches=3, factory=TEXTS, epochs=2),
    Variant(lengths=True, single=True, micro_batches=2, factory=TEXTS, activations="int8", gradients="bf16"),
)
"""Samples have lengths of their own."""

DATA = Variant().data


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.Dropout(0.3),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def build_frozen() -> nn.Module:
    """`build` with a head that nothing changes."""
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), *list(build().children())[2:])
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    return model


def build_frozen_but_random() -> nn.Module:
    """A head without anything to train, which draws what it leaves out."""
    model = build_frozen()
    return nn.Sequential(model[0], nn.Dropout(0.3), *list(model.children())[2:])


def build_frozen_but_moving() -> nn.Module:
    """A head without anything to train, whose running statistics move."""
    model = build()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    return model


def build_two() -> nn.Module:
    """`build` for two classes."""
    return nn.Sequential(*list(build().children())[:-1], nn.Linear(5, 2))


class Tokens(nn.Module):
    """The numbers of a sample as three tokens of two, or their mean again."""

    def __init__(self, *, apart: bool) -> None:
        super().__init__()
        self.apart = apart

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 3, 2) if self.apart else x.mean(1)


def build_tokens() -> nn.Module:
    """Layers for each token, so that their order does not matter."""
    return nn.Sequential(
        nn.Sequential(Tokens(apart=True), nn.Linear(2, 5)),
        nn.LayerNorm(5),
        nn.ReLU(),
        nn.Linear(5, 5),
        nn.Dropout(0.3),
        nn.LayerNorm(5),
        nn.Linear(5, 5),
        nn.Sequential(Tokens(apart=False), nn.ReLU(), nn.Linear(5, 3)),
    )


class Earlier(nn.Module):
    """Adds to each place what came before it, so that a length matters to all behind."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x.cumsum(1)


def build_texts() -> nn.Module:
    """Scores [B, classes, length] for samples of any length."""
    return nn.Sequential(
        nn.Linear(2, 5),
        Earlier(),
        nn.ReLU(),
        nn.Sequential(nn.Linear(5, 5), Earlier()),
        nn.Dropout(0.3),
        nn.LayerNorm(5),
        nn.Linear(5, 3),
        Turned(),
    )


class Turned(nn.Module):
    """Puts classes before places, as a loss wants them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def example_texts() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, LONGEST, 2), torch.zeros(BATCH, LONGEST, dtype=torch.int64)


def device_texts(device: str) -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Samples of 1 to `LONGEST` places, some without a label."""
    generator = torch.Generator().manual_seed(int(device.rpartition("-")[2]))
    found = []
    for number in range(SAMPLES):
        length = 1 + number * 5 % LONGEST
        inputs = torch.randn(length, 2, generator=generator)
        targets = torch.randint(0, 2, (length,), generator=generator)
        found.append((inputs, targets.masked_fill(targets.cumsum(0) > 2, -100)))
    if device.startswith("broken-"):
        found[3][0][0, 1] = float("inf")
    return found, found[:5]


def build_private() -> nn.Module:
    """`build` without what mixes samples."""
    return nn.Sequential(
        *(nn.LayerNorm(5) if isinstance(module, nn.BatchNorm1d) else module for module in build().children())
    )


def example() -> tuple[Tensor, Tensor]:
    return torch.zeros(BATCH, 6), torch.zeros(BATCH, dtype=torch.int64)


def device_data(device: str) -> tuple[Dataset[tuple[Tensor, ...]], Dataset[tuple[Tensor, ...]]]:
    generator = torch.Generator().manual_seed(int(device.rpartition("-")[2]))
    inputs = torch.randn(SAMPLES, 6, generator=generator)
    targets = torch.randint(0, 2, (SAMPLES,), generator=generator)
    if device.startswith("broken-"):
        inputs[3, 2] = float("inf")
    return TensorDataset(inputs, targets), TensorDataset(inputs[:5], targets[:5])


DEVICES = ("phone-1", "phone-2")
FLEET = ("phone-1", "phone-2", "phone-3")
ROUNDS = (("mode", "splitfed"), ("round_steps", 3), ("deadline", "6s"))
PLAIN_FLEET = Variant(epochs=2, fleet=(*ROUNDS, ("aggregate", "plain"), ("quorum", 2)))
SEALED_FLEET = Variant(epochs=2, fleet=ROUNDS)
WINDOWS = (("mode", "shared"), ("round_steps", 3), ("deadline", "6s"))
PLAIN_SHARED = Variant(epochs=2, fleet=(*WINDOWS, ("aggregate", "plain")))
SHARED_BY_TURNS = Variant(epochs=2, fleet=(*WINDOWS, ("aggregate", "plain"), ("window", 2)))
SEALED_SHARED = Variant(epochs=2, fleet=WINDOWS)
TURNS = (("mode", "relay"), ("round_steps", 3), ("deadline", "6s"))
PLAIN_RELAY = Variant(epochs=2, fleet=(*TURNS, ("aggregate", "plain")))
SEALED_RELAY = Variant(epochs=2, fleet=TURNS)
BY_ARRIVAL = ("order", "arrival")
SHARED_BY_ARRIVAL = Variant(epochs=2, fleet=(*WINDOWS, ("window", 1), BY_ARRIVAL))
RELAY_BY_ARRIVAL = Variant(epochs=2, fleet=(*TURNS, BY_ARRIVAL))
FLEETS = {
    "plain": PLAIN_FLEET,
    "sealed": SEALED_FLEET,
    "relay": PLAIN_RELAY,
    "sealed-relay": SEALED_RELAY,
    "shared": PLAIN_SHARED,
    "sealed-shared": SEALED_SHARED,
    "shared-by-turns": SHARED_BY_TURNS,
    "shared-by-arrival": SHARED_BY_ARRIVAL,
    "relay-by-arrival": RELAY_BY_ARRIVAL,
}
"""Fleets in every mode, which a sweep of seeds goes through in turn, beside the variants of one device."""


@cache
def job(variant: Variant) -> Job:
    """The toy job of that variant."""
    single = variant.single
    spec = JobSpec.model_validate(
        {
            "name": "toy",
            "seed": 7,
            "batch_size": variant.batch,
            "micro_batches": variant.micro_batches,
            "accumulate": variant.accumulate,
            "epochs": variant.epochs,
            "share_labels": single,
            "share_loss": variant.share_loss,
            "model": {
                "factory": variant.factory,
                "example": f"tests.simulation.toy:example{'_texts' if variant.lengths else ''}",
                "cuts": ("2",) if single else ("2", "5"),
                **({"max_length": LONGEST, "pad": {"input": 0.0, "target": -100}} if variant.lengths else {}),
            },
            "loss": {"name": "cross_entropy"},
            "optimizer": dict(variant.optimizer),
            "durability": {
                "checkpoint_every": 2,
                "snapshot_every_steps": 3,
                "checkpoint_history": 2,
                "on_non_finite": variant.on_non_finite,
                "exactness": variant.exactness,
            },
            "link": {
                "activations": variant.activations,
                "gradients": variant.gradients,
                "allow": variant.allow,
            },
            "evaluation": {"every_epochs": max(1, min(2, variant.epochs - 1)), **dict(variant.evaluation)},
            "privacy": {
                key: dict(value) if isinstance(value, tuple) else value for key, value in variant.privacy
            },
            **_of_fleet(variant),
        }
    )
    return Job.create(spec)


def _of_fleet(variant: Variant) -> dict[str, object]:
    fleet = dict(variant.fleet)
    return {"fleet": fleet, "share_ends": fleet.get("aggregate") == "plain"} if fleet else {}


State = dict[str, Tensor]


@cache
def undisturbed(device: str, variant: Variant, secret: bytes = SECRET) -> tuple[State, State, dict[int, str]]:
    """The device's state and the body's after the last step, and each GRADIENT's digest, without a wire."""
    return train_alone(job(variant), variant.data, device, secret=secret)


def as_logged(device: str, variant: Variant, codecs: Iterator[str]) -> tuple[State, State]:
    """The device's state and the body's after the last step, under the codecs that a log names."""
    return train_alone(job(variant), variant.data, device, chooser=Given(codecs))[:2]


Sent = Callable[[m.Request], object]


@dataclass(slots=True)
class Drawn:
    """Chooses at random: the link changes at every message."""

    link: LinkSpec
    rng: random.Random

    def choose(self, values: Values, nbytes: int) -> str:
        return self.rng.choice(self.link.codecs[values[1]])

    def packed(self, values: Values, codec: str, *, before: int, after: int) -> None:
        pass


@dataclass(slots=True)
class Given:
    """Chooses what was chosen before: the codecs of a log, in the order in which a device asks for them."""

    codecs: Iterator[str]

    def choose(self, values: Values, nbytes: int) -> str:
        return next(self.codecs)

    def packed(self, values: Values, codec: str, *, before: int, after: int) -> None:
        pass


def train_alone(
    job: Job,
    data: str,
    device: str,
    *,
    secret: bytes = SECRET,
    epochs: int | None = None,
    sent: Sent = lambda _: None,
    chooser: CodecChooser | None = None,
    chosen: bytes | None = None,
) -> tuple[State, State, dict[int, str]]:
    """`undisturbed` of any job. `sent` gets each FORWARD and BACKWARD as a device would send it.

    `epochs`: as many instead of the job's. A job that says `auto` needs a `chooser`, or what a device has
    written down of its choices.
    """
    trainer, body = both_sides(
        job, data, device, secret=secret, epochs=epochs, chooser=chooser, chosen=chosen
    )
    judge, best, spec = trainer.evaluator.best, None, job.spec.evaluation
    digests: dict[int, str] = {}
    with suppress(NotFinite, NotFiniteOnDevice, DataError):
        for step in range(1, trainer.batches.total_steps + 1):
            digests[step] = take_step(trainer, body, step, sent)
            if judge is not None and step % (spec.every_epochs * trainer.batches.steps_per_epoch) == 0:
                evaluate(trainer, body)
                if judge.kept == step:
                    best = trainer.state(), body.snapshot()
                if judge.finished:
                    break
    if best is None or judge is None or judge.kept == trainer.step:
        return trainer.state(), body.snapshot(), digests
    return trainer.best_at_the_end(best[0]), best[1], digests


def both_sides(
    job: Job,
    data: str,
    device: str,
    *,
    secret: bytes = SECRET,
    epochs: int | None = None,
    chooser: CodecChooser | None = None,
    chosen: bytes | None = None,
) -> tuple[DeviceTrainer, DirectBody]:
    """A device and the body that it trains with, at step 0."""
    found = load_dataset(data, device, job.signature)
    assert found.test is not None
    key = job_key(secret, device=device, job=job.digest)
    lasting = job.spec if epochs is None else job.spec.model_copy(update={"epochs": epochs})
    labels = label_key(secret)
    batches = BatchOrder(found.train, lasting, job.signature, device=device, key=key, labels=labels)
    tests = EvaluationBatches(found.test, job.spec, job.signature, device=device, key=key)
    choices = StepChoices(
        job.spec.link, chooser or BySpeed(job.spec.link, LinkSpeed()), ahead=1, saved=chosen
    )
    trainer = DeviceTrainer.create(
        job, batches, tests, device=device, key=key, ends=draw_ends(job, key), choices=choices
    )
    return trainer, DirectBody(job, f"{job.name}.{device}")


def evaluate(trainer: DeviceTrainer, body: DirectBody) -> None:
    """Evaluate on both sides."""
    attempt, index, more = m.AttemptRef(number=1, nonce="0" * 16), 0, True
    while more:
        head = trainer.evaluator.head_values(index)
        request = m.Eval(
            session=body.session,
            attempt=attempt,
            step=trainer.step,
            samples=head.samples,
            length=head.length,
            **m.carried(head.values),
        )
        more, index = trainer.evaluator.take_outputs(index, body.evaluate(request)), index + 1


def take_step(trainer: DeviceTrainer, body: DirectBody, step: int, sent: Sent = lambda _: None) -> str:
    """Take one step on both sides, one micro-batch after the other; the digest of its gradients."""
    attempt = m.AttemptRef(number=1, nonce="0" * 16)
    result, micro = None, 0
    while result is None:
        head = trainer.run_head(step, micro)
        forward = m.Forward(
            session=body.session,
            attempt=attempt,
            step=step,
            micro=micro,
            samples=head.samples,
            length=head.length,
            batch=None if head.samples == head.batch else head.batch,
            targets=len(head.targets),
            counted=head.counted,
            **m.carried(head.values, *head.targets),
            oldest_checkpoint=0,
        )
        sent(forward)
        result = body.forward(forward)
        if trainer.tail is not None:
            gradients = trainer.run_tail(body.outputs(micro), micro)
            noise = trainer.body_noise
            backward = m.Backward(
                session=body.session,
                attempt=attempt,
                step=step,
                micro=micro,
                forward=forward.request,
                noise=noise.key if noise else None,
                noise_multiplier=noise.multiplier if noise else None,
                **m.carried(gradients),
            )
            sent(backward)
            result = body.backward(backward)
        if result is None:
            early = body.result(micro)
            trainer.run_head_backward(early.gradients, early.loss)
        micro += 1
    if result.skipped:
        trainer.skip()
    else:
        trainer.apply(result.micros[-1].gradients, result.micros[-1].loss)
    return result.digest
