"""`precision = "bf16"`: the split model gives what plain PyTorch gives under autocast, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spliteasy.errors import JobError
from spliteasy.graph.document import ValueSpec
from spliteasy.job import Job, JobSpec
from spliteasy.job.source import build_model
from spliteasy.privacy.ends import draw
from spliteasy.runtime.randomness import Key
from spliteasy.training.losses import LOSSES
from spliteasy.training.reference import PlainTraining
from spliteasy.training.segment_trainer import STEP_KEY, SegmentTrainer, backward_from, tensors_of

WIDTH, CLASSES = 16, 3


class Convolutions(nn.Module):
    """Batch norm, pooling, a residual sum, and a view in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(self.conv(x))
        made += x
        F.relu_(made)
        return F.avg_pool2d(made, 2, 1, padding=1)[:, :, :2, :2].clone()


class Attention(nn.Module):
    """Attention, layer norm, softmax and one weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        tokens = self.mix(self.mix(self.norm(rows)))
        seen, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        own = F.scaled_dot_product_attention(tokens, rows, seen, is_causal=True)
        weights = torch.softmax(torch.matmul(own, own.transpose(1, 2)), -1)
        return (torch.bmm(weights, tokens) + rows).transpose(1, 2).reshape(x.shape)


class Mixed(nn.Module):
    """Values of both widths meet: joined, summed over indices, squared, and without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.table = nn.Linear(WIDTH, WIDTH), nn.Embedding(8, WIDTH)
        self.curve = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        low = self.line(flat)
        with torch.no_grad():
            places = (self.line(flat)[:, :1] > 0).long().squeeze(1)
        both = torch.cat((low, flat), 1)
        square = torch.einsum("bi,bj->bij", low, flat) @ torch.einsum("bi,bj->bji", low, low)
        made = self.curve(low) * both[:, :WIDTH] + square.mean(1) + self.table(places)
        return (made / made.norm(dim=1, keepdim=True)).reshape(x.shape)


BLOCKS = {"convolutions": Convolutions, "attention": Attention, "mixed": Mixed}


class Net(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(1, 4, 3), block(), block()
        self.drop, self.out = nn.Dropout(0.2), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(self.second(self.first(self.stem(x))).flatten(1)))  # type: ignore[no-any-return]


def convolutions() -> nn.Module:
    return Net(Convolutions)


def attention() -> nn.Module:
    return Net(Attention)


def mixed() -> nn.Module:
    return Net(Mixed)


def low_base() -> nn.Module:
    """A frozen part in bfloat16, as a large base is kept."""
    model = Net(Mixed)
    model.first.line.to(torch.bfloat16).requires_grad_(False)
    return model


def low_and_trained() -> nn.Module:
    model = Net(Mixed)
    model.first.line.to(torch.bfloat16)
    return model


class Cells(nn.Module):
    """What autocast casts within an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.cells, self.out = nn.Linear(16, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(self.stem(x.flatten(1)).unsqueeze(1))[0][:, -1])  # type: ignore[no-any-return]


def cells() -> nn.Module:
    return Cells()


def example() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 4, 4), torch.zeros(4, dtype=torch.int64)


def spec_of(factory: str, cuts: tuple[str, ...] = ("stem", "second"), **more: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "low",
            "seed": 3,
            "batch_size": 4,
            "epochs": 1,
            "precision": "bf16",
            "share_labels": len(cuts) == 1,
            "model": {
                "factory": f"tests.splitting.test_autocast:{factory}",
                "example": "tests.splitting.test_autocast:example",
                "cuts": cuts,
            },
            "loss": {"name": "cross_entropy"},
            "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9},
            **more,
        }
    )


KEY = Key(bytes(32))


def trainers_of(job: Job) -> list[SegmentTrainer]:
    ends = draw(job.ends, KEY)
    present = [("head", job.head), ("body", job.body), ("tail", job.tail)]
    return [
        SegmentTrainer(
            segment.spawn(ends.get(role)),  # type: ignore[call-overload]
            job.spec,
            device="phone-1",
            role=role,
            key=None if role == "body" else KEY,
        )
        for role, segment in present
        if segment is not None
    ]


def step(job: Job, trainers: list[SegmentTrainer], inputs: Tensor, targets: Tensor) -> float:
    """One step through the segments, as device and worker take it."""
    head, *rest = trainers
    opened = [head.forward([inputs])]
    wire, stay = opened[0].outputs[: head.segment.n_wire], opened[0].outputs[head.segment.n_wire :]
    for place, trainer in enumerate(rest):
        given = (*wire, *(stay if place else ()))
        opened.append(trainer.forward([v.detach() if isinstance(v, Tensor) else v for v in given]))
        wire = opened[-1].outputs
    loss = job.loss(tensors_of(wire), (targets,))
    backward_from(loss)
    back = tuple(v.grad if isinstance(v, Tensor) else None for v in opened[-1].inputs)
    kept: tuple[Tensor | None, ...] = ()
    for place in range(len(trainers) - 2, -1, -1):
        count = trainers[place].segment.n_wire if place == 0 else len(opened[place].outputs)
        own, more = back[:count], back[count:]
        kept = more or kept
        back = trainers[place].backward(opened[place], (*own, *kept) if place == 0 else own)
    for trainer in trainers:
        trainer.apply()
    return float(loss.detach())


@pytest.mark.parametrize("cuts", [("stem", "second"), ("first", "drop"), ("first",)], ids=str)
@pytest.mark.parametrize("factory", [*BLOCKS, "low_base"])
def test_it_trains_as_plain_pytorch_does_under_autocast(factory: str, cuts: tuple[str, ...]) -> None:
    spec = spec_of(factory, cuts)
    job = Job.create(spec)
    trainers = trainers_of(job)
    plain = PlainTraining(
        job,
        build_model(spec)[0],
        LOSSES["cross_entropy"],
        device="phone-1",
        key=KEY,
        ends=draw(job.ends, KEY),
    )
    generator = torch.Generator().manual_seed(1)
    for size in (4, 3, 4):
        inputs = torch.randn(size, 1, 4, 4, generator=generator)
        targets = torch.randint(0, CLASSES, (size,), generator=generator)
        assert step(job, trainers, inputs, targets) == plain.step([inputs], [targets])
    ours = {name: tensor for trainer in trainers for name, tensor in trainer.state().items()}
    theirs = plain.state()
    del ours[STEP_KEY]
    assert ours.keys() == theirs.keys()
    assert not [name for name in theirs if not torch.equal(ours[name], theirs[name])]
    kinds = {tensor.dtype for name, tensor in ours.items() if name.startswith("model/")}
    assert (torch.bfloat16 in kinds) == (factory == "low_base")


def test_plain_training_under_autocast_is_what_a_user_writes() -> None:
    """The plain program that all is compared with is itself held to one that is written out here."""
    spec = spec_of("mixed")
    job = Job.create(spec)
    model, _, _ = build_model(spec)
    plain = PlainTraining(
        job, model, LOSSES["cross_entropy"], device="phone-1", key=KEY, ends=draw(job.ends, KEY)
    )
    own = Net(Mixed)
    own.load_state_dict(model.state_dict())
    own.drop.p = 0.0
    model.drop.p = 0.0  # type: ignore[union-attr, assignment]
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9)
    for seed in (1, 2):
        inputs = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        targets = torch.tensor([0, 1, 2, 0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(own(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert float(loss.detach()) == plain.step([inputs], [targets])
    assert all(torch.equal(x, plain.state()[f"model/{name}"]) for name, x in own.state_dict().items())


def kinds_of(values: tuple[ValueSpec, ...]) -> list[str | None]:
    return [value.dtype for value in values]


def test_what_autocast_made_bfloat16_crosses_as_that() -> None:
    job = Job.create(spec_of("convolutions"))
    assert kinds_of(job.head.output_values) == ["bfloat16"]
    assert job.tail is not None
    assert kinds_of(job.tail.output_values) == ["float32"]
    assert kinds_of(Job.create(spec_of("convolutions", precision="fp32")).head.output_values) == ["float32"]


def test_evaluation_is_plain_pytorchs_under_autocast() -> None:
    job = Job.create(spec_of("attention"))
    model, (inputs,), _ = build_model(job.spec)
    for table in (ends := draw(job.ends, KEY)).values():
        for name, tensor in table.items():
            model.get_parameter(name).data.copy_(tensor)
    head, body, tail = (trainer.segment.eval() for trainer in trainers_of(job))
    assert ends
    with torch.no_grad():
        (found,) = tail(*body(*head(inputs)))
        assert torch.equal(found, model.eval()(inputs))  # type: ignore[arg-type]


def test_an_operator_that_casts_within_itself_is_refused_with_a_way_out() -> None:
    spec = spec_of("cells", ("stem", "cells"))
    with pytest.raises(JobError, match="casts values within it under autocast") as refused:
        Job.create(spec.model_copy(update={"batch_size": 4}))
    assert "fp32" in (refused.value.hint or "")


def test_bfloat16_parameters_are_for_frozen_parts() -> None:
    with pytest.raises(JobError, match=r"first\.line\.weight is bfloat16 and trains"):
        Job.create(spec_of("low_and_trained"))
    with pytest.raises(JobError, match="is bfloat16, and precision is fp32"):
        Job.create(spec_of("low_base", precision="fp32"))


def test_a_package_says_that_it_needs_a_version_that_knows_bf16() -> None:
    assert b'"bf16"' in Job.create(spec_of("mixed")).manifest
