"""Optimizer, schedule and clipping are what a user of plain PyTorch would write, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR

from spliteasy.errors import JobError
from spliteasy.job import JobSpec, parse_job
from spliteasy.training.lion import Lion
from spliteasy.training.losses import LOSSES
from spliteasy.training.optim import build_optimizer, clip_gradients, set_learning_rate
from spliteasy.training.schedule import factor
from tests.job.test_spec import small

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}


def spec_with(**sections: Any) -> JobSpec:
    return parse_job({**small(), **sections})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))


def train(model: nn.Module, optimizers: list[Any], before_step: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    for taken in range(5):
        x = torch.randn(8, 5, generator=generator)
        loss = model(x).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        before_step(taken)
        for optimizer in optimizers:
            optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize(
    ("section", "plain"),
    [
        (SGD, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
        (
            {"name": "sgd", "lr": 0.1, "momentum": 0.9, "dampening": 0.5},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
        ),
        (
            {"name": "adam", "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.1},
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1),
        ),
        ({"name": "adamw", "lr": 0.01}, lambda p: torch.optim.AdamW(p, lr=0.01)),
        (
            {"name": "rmsprop", "lr": 0.01, "alpha": 0.9, "momentum": 0.5, "centered": True},
            lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, momentum=0.5, centered=True),
        ),
        (
            {"name": "adagrad", "lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-6},
            lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1, initial_accumulator_value=0.2, eps=1e-6),
        ),
        (
            {"name": "lion", "lr": 0.01, "betas": [0.8, 0.95], "weight_decay": 0.1},
            lambda p: Lion(p, lr=0.01, betas=(0.8, 0.95), weight_decay=0.1),
        ),
    ],
)
def test_an_optimizer_a_segment_equals_one_for_the_model(section: dict[str, Any], plain: Any) -> None:
    schedule = {"name": "cosine", "steps": 5, "warmup_steps": 2}
    spec = spec_with(optimizer=section, schedule=schedule)
    split = network()
    named = list(split.named_parameters())
    parts = [build_optimizer(spec.optimizer, named[:2]), build_optimizer(spec.optimizer, named[2:])]

    def schedule_parts(taken: int) -> None:
        for part in parts:
            set_learning_rate(part, spec, taken + 1)

    ours = train(split, parts, schedule_parts)
    whole = network()
    optimizer = plain(whole.parameters())
    scheduler = LambdaLR(optimizer, lambda taken: factor(spec.schedule, taken + 1))

    def schedule_whole(taken: int) -> None:
        if taken:
            scheduler.step()

    theirs = train(whole, [optimizer], schedule_whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    start = network().state_dict()
    assert not torch.equal(ours["3.weight"], start["3.weight"])


# torch's LambdaLR warns when it is stepped before the optimizer; above it always steps after one.
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")


def test_lion_is_as_published() -> None:
    weight, gradients = torch.tensor([1.0, -2.0, 0.5]), torch.randn(4, 3, dtype=torch.float64)
    parameter = nn.Parameter(weight.double().clone())
    optimizer = Lion([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.3)
    expected, momentum = weight.double().clone(), torch.zeros(3, dtype=torch.float64)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        direction = (0.9 * momentum + 0.1 * gradient).sign()
        expected = expected - 0.1 * (direction + 0.3 * expected)
        momentum = 0.99 * momentum + 0.01 * gradient
        assert torch.allclose(parameter.detach(), expected)


@pytest.mark.parametrize("name", ["plateau", "ReduceLROnPlateau"])
def test_a_schedule_by_plateaus_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(JobError, match="is no function of the step"):
        spec_with(schedule={"name": name, "patience": 3})


def test_groups_take_their_settings_from_the_first_match() -> None:
    groups = [
        {"pattern": "0.*", "frozen": True},
        {"pattern": "*.bias", "weight_decay": 0.0},
        {"pattern": "3.*", "lr": 0.5},
        {"pattern": "3.weight", "lr": 9.0},
    ]
    spec = spec_with(optimizer={**SGD, "groups": groups})
    model = network()
    optimizer = build_optimizer(spec.optimizer, model.named_parameters())
    assert optimizer is not None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "1.weight": (0.1, 0.01),
        "1.bias": (0.1, 0.0),
        "3.weight": (0.5, 0.01),
        "3.bias": (0.1, 0.0),
    }
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    set_learning_rate(optimizer, spec_with(schedule={"name": "step", "step_size": 1, "gamma": 0.5}), 2)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.05, 0.25]


def test_a_segment_with_nothing_to_train_has_no_optimizer() -> None:
    spec = spec_with(optimizer={**SGD, "groups": [{"pattern": "*", "frozen": True}]})
    assert build_optimizer(spec.optimizer, network().named_parameters()) is None
    assert build_optimizer(spec.optimizer, []) is None
    set_learning_rate(None, spec, 1)


def test_schedules_are_what_torch_computes() -> None:
    def rates(scheduler_of: Any) -> list[float]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = scheduler_of(optimizer)
        found = []
        for _ in range(20):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    cosine = spec_with(schedule={"name": "cosine", "steps": 20, "min_factor": 0.1}).schedule
    expected = rates(lambda o: CosineAnnealingLR(o, T_max=20, eta_min=0.1))
    assert [factor(cosine, k) for k in range(1, 21)] == pytest.approx(expected)
    step = spec_with(schedule={"name": "step", "step_size": 6, "gamma": 0.5}).schedule
    assert [factor(step, k) for k in range(1, 21)] == pytest.approx(rates(lambda o: StepLR(o, 6, 0.5)))


def test_warm_up_comes_before_every_schedule() -> None:
    for section in ({"name": "constant"}, {"name": "cosine", "steps": 8}, {"name": "step", "step_size": 2}):
        schedule = spec_with(schedule={**section, "warmup_steps": 4}).schedule
        assert [factor(schedule, step) for step in range(1, 6)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = spec_with(schedule={"name": "cosine", "steps": 8, "min_factor": 0.25}).schedule
    assert factor(cosine, 9) == factor(cosine, 100) == 0.25
    with pytest.raises(ValueError, match="steps count from 1"):
        factor(cosine, 0)


def test_clipping_is_torchs_own() -> None:
    ours, theirs = network(), network()
    for model in (ours, theirs):
        model(torch.ones(4, 5) * torch.arange(4).view(4, 1)).sum().backward()
    clip = spec_with(clip={"max_norm": 0.5}).clip
    clip_gradients(ours.parameters(), clip)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5, foreach=False)
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)
    norm = torch.stack([p.grad.norm() for p in ours.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)
    clip_gradients(theirs.parameters(), None)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


def test_named_losses_are_torchs_own() -> None:
    outputs, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = nn.functional.cross_entropy(outputs, labels)
    assert torch.equal(LOSSES["cross_entropy"]((outputs,), (labels,)), expected)
    for name in ("mse", "l1", "smooth_l1", "bce_with_logits"):
        value = LOSSES[name]((outputs,), (torch.rand(6, 3),))
        assert value.shape == ()
        assert value > 0
    with pytest.raises(JobError, match="takes one output and one target, got 2 and 1"):
        LOSSES["mse"]((outputs, outputs), (outputs,))
