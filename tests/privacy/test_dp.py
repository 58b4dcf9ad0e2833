"""DP-SGD: who is in a batch, what one sample can move, what is spent, and the plain program's bits."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.private_digits import job_of
from device_agent.state_folder import StateFolder
from device_agent.training.budget import Budget
from server_worker.store.keys import StoreKeys
from spliteasy.errors import DataError, JobError, StateError
from spliteasy.graph.segment import Segment
from spliteasy.job import Job, JobSpec, parse_job
from spliteasy.job.spec import DpSpec
from spliteasy.privacy.defences.dp import PoissonBatches
from spliteasy.training.losses import LOSSES
from spliteasy.training.private_trainer import PrivateTrainer, row_gradients, segment_trainer
from spliteasy_cli.support.comparison import compare, prepare
from tests.drawn import key_of
from tests.privacy.conftest import ROOT


def spec_of(*, batch_size: int = 400, **dp: Any) -> JobSpec:
    job = job_of(epsilon=8.0, epochs=5, lr=0.5)
    job["privacy"]["dp"] |= dp
    return parse_job(job | {"batch_size": batch_size})


@pytest.fixture(scope="module")
def job() -> Job:
    return Job.create(spec_of(), ROOT)


def poisson(samples: int = 1440, **dp: Any) -> PoissonBatches:
    return PoissonBatches(spec_of(**dp), samples, key_of(), device="phone-1")


def test_each_sample_is_drawn_by_itself_with_the_rate_of_the_accountant() -> None:
    batches, steps = poisson(), 400
    drawn = torch.zeros(steps, 1440, dtype=torch.float64)
    for step in range(steps):
        drawn[step, batches.draw(step)] = 1
    sizes, rate = drawn.sum(1), batches.rate
    assert rate == 256 / 1440
    assert float(sizes.mean()) == pytest.approx(256, abs=4)
    assert float(sizes.var()) == pytest.approx(1440 * rate * (1 - rate), rel=0.25)
    assert float(drawn.mean(0).sub(rate).abs().max()) < 5 * math.sqrt(rate * (1 - rate) / steps)
    assert batches.draw(7) == batches.draw(7)


def test_epsilon_says_how_much_noise_and_every_epsilon_names_its_adversary() -> None:
    batches = poisson(epsilon=3.0)
    assert 2.99 < batches.spent(batches.planned) <= 3.0
    assert batches.spent(10) < batches.spent(20)
    text = batches.guarantee()
    assert "1e-05)-differentially private" in text
    assert "against anybody who has the trained model" in text
    assert "not against the worker" in text


@pytest.mark.parametrize(
    ("samples", "changed", "says"),
    [(100, {}, "fewer than"), (1440, {"batch_size": 270}, "set batch_size = 3")],
)
def test_data_that_do_not_fit_are_refused(samples: int, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as raised:
        PoissonBatches(spec_of(**changed), samples, key_of(), device="phone-1")
    assert says in f"{raised.value.message} {raised.value.hint}"


def private(segment: Segment, spec: JobSpec) -> PrivateTrainer:
    trainer = segment_trainer(segment.spawn(), spec, device="phone-1", role="body")
    assert isinstance(trainer, PrivateTrainer)
    return trainer


def summed(trainer: PrivateTrainer, values: torch.Tensor, gradients: torch.Tensor) -> list[torch.Tensor]:
    """The clipped sums of a batch, before noise."""
    trainer.backward(trainer.forward([values]), [gradients])
    sums = [p.grad for p in trainer.segment.parameters()]
    trainer.abort()
    return [g for g in sums if g is not None]


def test_one_sample_moves_a_segment_by_its_clip_at_most_and_small_ones_stay(job: Job) -> None:
    trainer = private(job.body, job.spec)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 16, 8, 8, generator=generator)
    gradients = torch.randn(6, 128, generator=generator) * torch.tensor([1e-4, 1e3, 1, 1, 1, 1])[:, None]
    whole = summed(trainer, values, gradients)
    for left_out in range(6):
        kept = [row for row in range(6) if row != left_out]
        moved = [a - b for a, b in zip(whole, summed(trainer, values[kept], gradients[kept]), strict=True)]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in moved))
        assert norm <= 1 / math.sqrt(3) * (1 + 1e-4)
    one = summed(trainer, values[:1], gradients[:1])
    plain = job.body.spawn().train()
    (output,) = plain.forward(values[:1])
    assert isinstance(output, torch.Tensor)
    output.backward(gradients[:1])  # type: ignore[no-untyped-call]
    expected = [p.grad for p in plain.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(one, expected, strict=True))


def test_noise_has_the_size_that_the_accountant_counts_and_another_step_has_other(job: Job) -> None:
    trainer = private(job.body, job.spec)
    before = [p.detach().clone() for p in trainer.segment.parameters()]
    values = torch.zeros(1, 16, 8, 8)
    trainer.backward(trainer.forward([values]), [torch.zeros(1, 128)])
    keys = [trainer.noise_key(key_of(), "body", losses) for losses in ([0.0], [0.5])]
    assert keys[0].stream(8) != keys[1].stream(8)
    trainer.give_noise(keys[0], 2.0)
    trainer.apply()
    after = [p.detach() for p in trainer.segment.parameters()]
    moved = torch.cat([(b - p).flatten() for b, p in zip(before, after, strict=True)])
    rate, clip = job.spec.optimizer.lr, 1.0
    assert float(moved.std()) == pytest.approx(rate * 2.0 * clip / 256, rel=0.05)


def test_a_sample_without_a_label_counts_for_nothing(job: Job) -> None:
    outputs = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([1, -100, 2])
    losses, (gradients,) = row_gradients(LOSSES["cross_entropy"], [outputs], [targets], job.measure)
    assert losses[1] == 0
    assert not gradients[1].any()
    assert gradients[2].any()


@pytest.fixture
def budget(tmp_path: Path) -> Callable[[], Budget]:
    """The budget of a folder, opened anew each time, as after a crash."""

    def opened() -> Budget:
        with StateFolder(tmp_path / "state") as state:
            return Budget(state, poisson())

    return opened


def test_a_release_is_durable_and_counted_once(budget: Callable[[], Budget]) -> None:
    first = budget()
    first.count(1, "head", "a")
    first.count(1, "tail", "b")
    assert budget().spent == 1
    again = budget()
    again.count(1, "head", "a")
    again.count(1, "tail", "b")
    assert again.spent == 1
    again.count(1, "tail", "other values of the same step")
    assert budget().spent == 2
    again.count(2, "head", "c")
    assert budget().spent == 3
    assert budget().epsilon > 0


def test_a_budget_is_never_exceeded(budget: Callable[[], Budget]) -> None:
    spender = budget()
    for step in range(30):
        spender.count(step, "head", "a")
    with pytest.raises(StateError, match="privacy budget is for 30"):
        spender.count(30, "head", "a")
    assert budget().spent == 30


def test_a_ledger_that_has_gone_is_an_error(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state") as state:
        Budget(state, poisson())
        state.save_checkpoint(0, {})
        (tmp_path / "state/budget").unlink()
        with pytest.raises(StateError, match="not known without it"):
            Budget(state, poisson())


PRIVACY = job_of(epsilon=8.0, epochs=1, lr=0.1)["privacy"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"privacy": PRIVACY | {"preset": "strict"}}, "moves the labels of others"),
        ({"privacy": PRIVACY | {"gradient_noise": 1.0}}, "and nopeek out"),
        ({"clip": {"max_norm": 1.0}}, "leave \\[clip\\] out"),
        ({"micro_batches": 2}, "leave micro_batches out"),
        ({"durability": {"on_non_finite": "skip"}}, "leave on_non_finite out"),
        ({"link": {"gradients": "int8"}}, "packs samples together"),
        ({"batch_size": 100}, "more than batch_size"),
        ({"loss": {"function": "m:loss"}}, "name a loss"),
    ],
)
def test_settings_that_break_the_theorem_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(JobError, match=says):
        parse_job(job_of(epsilon=8.0, epochs=1, lr=0.1) | changed)


def test_either_epsilon_or_noise_is_given() -> None:
    with pytest.raises(ValueError, match="either epsilon or noise_multiplier"):
        DpSpec(expected_batch=10)


def test_batch_norm_is_refused() -> None:
    with_norm = job_of(epsilon=8.0, epochs=1, lr=0.1)
    digits = {"factory": "examples.digits.model:build", "example": "examples.digits.model:example"}
    with_norm["model"] |= digits
    with pytest.raises(JobError, match="batch norm"):
        Job.create(parse_job(with_norm), ROOT)


TOML = """
name = "private"
seed = 1
batch_size = 40
epochs = 1
loss.name = "cross_entropy"
optimizer = {{ name = "sgd", lr = 0.5, momentum = 0.9 }}
privacy.dp = {{ epsilon = 8.0, expected_batch = {expected} }}

[model]
factory = "benchmarks.harness.private_digits:build"
example = "benchmarks.harness.private_digits:example"
cuts = ["stem", "pool"]
"""


@pytest.mark.parametrize("expected", [1, 8])
def test_split_and_plain_dp_sgd_are_the_same_bits(expected: int, tmp_path: Path) -> None:
    """With one sample a step on average some batches are empty."""
    file = tmp_path / "job.toml"
    file.write_text(TOML.format(expected=expected))
    plan = prepare(file, 6, 1, "benchmarks.harness.private_digits:device_data", tmp_path / "run", bytes(32))
    if expected == 1:
        assert any(plan.batches[0].is_empty(step) for step in range(1, 7))
    (found,) = asyncio.run(compare(plan, None, None, StoreKeys(), None, asyncio.Event()))
    assert max(found.differences.values()) == 0
