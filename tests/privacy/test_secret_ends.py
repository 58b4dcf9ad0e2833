"""Attacks that follow head and tail from their first weights fail where a device has drawn these itself."""

from __future__ import annotations

import asyncio

import pytest
import torch

from spliteasy.job import Job, JobSpec
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.attacks.tail_tracking import follow
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.recorder import Recording, record, view_of
from spliteasy_cli.leakage.sample import draw_sample
from tests.privacy.conftest import DATA, ROOT, STEPS, Play


@pytest.fixture(scope="module")
def secret(digits_spec: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The digits job as it is by default."""
    job = Job.create(digits_spec.model_copy(update={"privacy": PrivacySpec()}), ROOT)
    folder = tmp_path_factory.mktemp("secret")
    return asyncio.run(record(job, draw_sample(job, DATA, ROOT), folder, steps=STEPS))


def test_the_tail_can_not_be_followed(secret: Recording, play: Play) -> None:
    _, scores = play(secret, "tail-tracking")
    assert scores["label_recovery"].value <= 0.2
    assert scores["canary_recovery"].value <= 0.2
    _, spy = follow(view_of(secret, Adversary.WORKER))
    assert secret.released.tail is not None
    for name, tensor in spy.segment.named_parameters():
        assert not torch.allclose(tensor, secret.released.tail[name], atol=1e-2)


def test_the_head_can_not_be_followed(secret: Recording, play: Play) -> None:
    _, scores = play(secret, "head-tracking")
    assert scores["input_mse"].value >= 0.05
