"""The digits job: what its data promises, and that plain PyTorch learns it from one phone's quarter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from device_agent.training.data import BatchOrder, EvaluationBatches, load_dataset
from examples.digits.data import device_data, quarter
from spliteasy.job import Job, JobSpec, load_job_file
from spliteasy.job.source import build_model
from spliteasy.runtime.user_code import project_root
from spliteasy.training.losses import LOSSES
from spliteasy.training.optim import build_optimizer, set_learning_rate
from tests.drawn import key_of

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "digits" / "job.toml"
PHONES = [f"phone-{number}" for number in range(1, 5)]


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    return load_job_file(FILE)


@pytest.fixture(scope="module")
def job(spec: JobSpec) -> Job:
    return Job.create(spec, project_root(FILE))


def test_each_phone_has_a_balanced_quarter_that_no_other_has() -> None:
    shares = [device_data(phone) for phone in PHONES]
    labels = [train.labels for train, _ in shares]
    assert [len(train) for train, _ in shares] == [360] * 4
    for counts in [torch.bincount(part, minlength=10) for part in labels]:
        assert counts.min() >= 34
        assert counts.max() <= 38
    images = {image.numpy().tobytes() for train, _ in shares for image in train.images}
    assert len(images) == 1440
    tests = [test for _, test in shares]
    assert all(len(test) == 357 for test in tests)
    assert not images & {
        torch.nn.functional.pad(x, (1, 1, 1, 1)).numpy().tobytes() for x in tests[0].tensors[0]
    }


def test_other_names_have_a_quarter_by_their_hash() -> None:
    assert [quarter(phone) for phone in PHONES] == [0, 1, 2, 3]
    assert {quarter(f"tablet-{number}") for number in range(20)} == {0, 1, 2, 3}
    assert [quarter("phone-5"), quarter("phone-11"), quarter("my-phone-1")] == [0, 2, 2]


def test_the_schedule_ends_with_the_training(spec: JobSpec, job: Job) -> None:
    data = load_dataset("examples.digits:device_data", "phone-3", job.signature, root=ROOT)
    batches = BatchOrder(
        data.train, spec, job.signature, device="phone-3", key=key_of("phone-3"), labels=key_of()
    )
    assert spec.schedule.name == "cosine"
    assert batches.total_steps == spec.schedule.steps
    assert job.head.output_values[0].shape_for(30) == (30, 16, 8, 8)


def test_plain_pytorch_learns_it_from_one_phones_quarter(spec: JobSpec, job: Job) -> None:
    model, _, _ = build_model(spec, ROOT)
    data = load_dataset("examples.digits:device_data", "phone-1", job.signature, root=ROOT)
    batches = BatchOrder(data.train, spec, job.signature, device="phone-1", key=key_of(), labels=key_of())
    optimizer = build_optimizer(spec.optimizer, model.named_parameters())
    assert optimizer is not None
    for step in range(1, batches.total_steps + 1):
        inputs, targets = batches.batch(step)
        optimizer.zero_grad()
        torch.autograd.backward(LOSSES["cross_entropy"]((model(*inputs),), targets))
        set_learning_rate(optimizer, spec, step)
        optimizer.step()
    assert data.test is not None
    tests = EvaluationBatches(data.test, spec, job.signature, device="phone-1", key=key_of())
    model.eval()
    right = 0
    with torch.no_grad():
        for index in range(len(tests)):
            inputs, targets = tests.batch(index, 0)
            right += int((model(*inputs).argmax(dim=1) == targets[0]).sum())
    assert right / tests.samples >= 0.97
