"""Gradients of several batches, and averages of weights, are what a user of plain PyTorch would write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from spliteasy.errors import DataError, JobError
from spliteasy.job import Job
from spliteasy.training.optim import build_optimizer
from spliteasy.training.segment_trainer import SegmentTrainer, backward_from
from tests.job.test_optim import spec_with
from tests.simulation import toy

WINDOW, DECAY = 3, 0.8


def job(**optimizer: Any) -> Job:
    settings = {"name": "adagrad", "lr": 0.1, "ema": DECAY, **optimizer}
    return toy.job(toy.Variant(accumulate=WINDOW, optimizer=tuple(settings.items())))


def batch(number: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(number))


def train_head(trainer: SegmentTrainer, numbers: range) -> None:
    for number in numbers:
        opened = trainer.forward((batch(number),))
        loss = opened.outputs[0].square().mean()  # type: ignore[union-attr]
        backward_from(loss, accumulate=WINDOW)
        trainer.apply()


def head() -> SegmentTrainer:
    made = job()
    torch.manual_seed(0)
    drawn = {name: torch.randn(tensor.shape) for name, tensor in made.head.named_parameters()}
    return SegmentTrainer(made.head.spawn(drawn), made.spec, device="phone-1", role="head")


def plain(start: dict[str, Tensor], batches: int) -> tuple[nn.Module, AveragedModel]:
    model = toy.build()[:3]
    model.load_state_dict(start)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for number in range(1, batches + 1):
        (model(batch(number)).square().mean() / WINDOW).backward()
        if number % WINDOW == 0:
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
    return model, average


def test_batches_add_up_and_weights_are_averaged_as_in_plain_pytorch() -> None:
    trainer = head()
    start = {name: tensor.clone() for name, tensor in trainer.segment.state_dict().items()}
    train_head(trainer, range(1, 10))
    model, average = plain(start, 9)
    own = trainer.segment.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(own["0.weight"], start["0.weight"])
    shown = trainer.weights()
    for name, parameter in average.module.named_parameters():
        assert torch.equal(shown[name], parameter)
        assert not torch.equal(shown[name], own[name])
    with torch.no_grad():
        average.module.load_state_dict({n: t for n, t in own.items() if "running" in n}, strict=False)
        expected = average.module.eval()(batch(0))
    assert torch.equal(trainer.evaluate((batch(0),))[0], expected)  # type: ignore[arg-type]
    assert torch.equal(trainer.segment.state_dict()["0.weight"], own["0.weight"]), "evaluation moves nothing"


@pytest.mark.parametrize("kept_at", [1, 2, 3, 5])
def test_a_window_goes_on_from_a_snapshot(kept_at: int) -> None:
    once, first, again = head(), head(), head()
    train_head(once, range(1, 8))
    train_head(first, range(1, kept_at + 1))
    first.forward((batch(99),))
    again.load_state(first.snapshot(), step=kept_at)
    train_head(again, range(kept_at + 1, 8))
    ours, theirs = again.snapshot(), once.snapshot()
    assert ours.keys() == theirs.keys()
    assert {"accumulated/0.weight", "average/0.weight", "optimizer/0.weight/sum"} <= ours.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_batch_given_up_leaves_the_sum_as_it_was() -> None:
    once, twice = head(), head()
    train_head(once, range(1, 4))
    train_head(twice, range(1, 2))
    backward_from(twice.forward((batch(50),)).outputs[0].sum())  # type: ignore[union-attr]
    twice.abort()
    train_head(twice, range(2, 4))
    ours, theirs = twice.snapshot(), once.snapshot()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_state_of_another_optimizer_is_left_out_whole() -> None:
    """RMSprop without momentum keeps less than with it: half of a state would stop the step."""
    plain_job, with_momentum = (
        toy.job(toy.Variant(optimizer=(("name", "rmsprop"), ("lr", 0.1), ("momentum", m))))
        for m in (0.0, 0.9)
    )
    values = {name: torch.ones(tensor.shape) for name, tensor in plain_job.head.named_parameters()}
    first, second = (
        SegmentTrainer(each.head.spawn(values), each.spec, device="phone-1", role="head")
        for each in (plain_job, with_momentum)
    )
    backward_from(first.forward((batch(1),)).outputs[0].sum())  # type: ignore[union-attr]
    first.apply()
    second.load_state(first.snapshot(), step=1)
    backward_from(second.forward((batch(2),)).outputs[0].sum())  # type: ignore[union-attr]
    second.apply()
    assert "optimizer/0.weight/momentum_buffer" in second.state()


def test_what_has_no_plain_program_is_refused() -> None:
    rounds = {"mode": "splitfed", "round_steps": 4}
    sgd = {"name": "sgd", "lr": 0.1}
    with pytest.raises(JobError, match="use accumulate = 1"):
        spec_with(accumulate=2, fleet=rounds)
    with pytest.raises(JobError, match=r"use optimizer\.ema left out"):
        spec_with(optimizer={**sgd, "ema": 0.9}, fleet=rounds)
    with pytest.raises(JobError, match="a larger batch_size in place of accumulate"):
        spec_with(accumulate=2, durability={"on_non_finite": "skip"})
    with pytest.raises(JobError, match="a larger expected_batch in place of accumulate"):
        spec_with(accumulate=2, privacy={"dp": {"epsilon": 3.0, "expected_batch": 4}})
    for decay in (0.0, 1.0):
        with pytest.raises(JobError, match=r"optimizer.*ema"):
            spec_with(optimizer={**sgd, "ema": decay})


def test_last_batches_that_fill_no_window_are_left_out() -> None:
    """14 samples in batches of 4 are 4 batches an epoch, so 12 in all, and 11 of 5 that fill no window."""
    assert max(toy.undisturbed("phone-1", toy.Variant(accumulate=5))[2]) == 10
    with pytest.raises(DataError, match="has 12 batches in all, fewer than accumulate = 13"):
        toy.undisturbed("phone-1", toy.Variant(accumulate=13))


def test_older_versions_refuse_what_they_would_misread() -> None:
    assert {"accumulation", "averaged-weights", "more-optimizers"} <= job().needs()
    assert not job(name="sgd", ema=0.5).needs() & {"more-optimizers"}
    assert b"accumulate" not in spec_with().to_json()
    assert b"ema" not in spec_with().to_json()
    assert build_optimizer(spec_with().optimizer, []) is None
