"""Trainings that are recorded once for all tests of attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from spliteasy.job import Job, JobSpec, load_job_file, parse_job
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.guesses import Guess, Score
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.gate import attacks_named
from spliteasy_cli.leakage.recorder import Recording, record, view_of
from spliteasy_cli.leakage.sample import draw_sample

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples/digits/job.toml"
DATA = "examples.digits:device_data"
STEPS = 36
"""Three epochs of the digits."""


@pytest.fixture(scope="session")
def digits_spec() -> JobSpec:
    spec = load_job_file(DIGITS)
    often = spec.evaluation.model_copy(update={"every_epochs": 1})
    return spec.model_copy(update={"privacy": PrivacySpec(ends="public"), "evaluation": often})


@pytest.fixture(scope="session")
def digits(digits_spec: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The digits job without any defence."""
    job = Job.create(digits_spec, ROOT)
    folder = tmp_path_factory.mktemp("digits")
    return asyncio.run(record(job, draw_sample(job, DATA, ROOT), folder, steps=STEPS))


def small_job(
    factory: str, example: str, cuts: list[str], *, batch: int, epochs: int, loss: str = "cross_entropy"
) -> Job:
    """A job of `tests.privacy.models`, without any defence."""
    spec = parse_job(
        {
            "name": factory,
            "batch_size": batch,
            "epochs": epochs,
            "model": {
                "factory": f"tests.privacy.models:{factory}",
                "example": f"tests.privacy.models:{example}",
                "cuts": cuts,
            },
            "loss": {"name": loss},
            "optimizer": {"name": "adam", "lr": 0.01},
            "privacy": {"ends": "public"},
        }
    )
    return Job.create(spec, ROOT)


@pytest.fixture(scope="session")
def memorized(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A job that learned random targets by heart."""
    job = small_job("memorizer", "noise", ["head", "body"], batch=16, epochs=20, loss="mse")
    sample = draw_sample(job, "tests.privacy.models:noise_data", ROOT)
    return asyncio.run(record(job, sample, tmp_path_factory.mktemp("memorized"), steps=80))


@pytest.fixture(scope="session")
def weightless(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A job whose tail has no weights."""
    job = small_job("weightless", "noise_classes", ["head", "tail"], batch=16, epochs=2)
    sample = draw_sample(job, "tests.privacy.models:rare_data", ROOT)
    return asyncio.run(record(job, sample, tmp_path_factory.mktemp("weightless"), steps=16))


@pytest.fixture(scope="session")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two classes, one of which is rare: what the length of gradients tells best."""
    job = small_job("rare", "noise_classes", ["head", "body"], batch=16, epochs=2)
    sample = draw_sample(job, "tests.privacy.models:rare_data", ROOT)
    return asyncio.run(record(job, sample, tmp_path_factory.mktemp("rare"), steps=30))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A job on sequences of tokens, cut after its first block."""
    job = small_job("text", "texts", ["first", "second"], batch=16, epochs=2)
    sample = draw_sample(job, "tests.privacy.models:text_data", ROOT)
    return asyncio.run(record(job, sample, tmp_path_factory.mktemp("text"), steps=4))


Play = Callable[..., tuple[Guess, dict[str, Score]]]


@pytest.fixture(scope="session")
def play() -> Play:
    """Play one attack on a recording: what it claims, and its scores by limit key."""

    def played(
        recording: Recording, name: str, adversary: Adversary = Adversary.WORKER
    ) -> tuple[Guess, dict[str, Score]]:
        (attack,) = attacks_named([name])
        view = view_of(recording, adversary)
        assert adversary in attack.adversaries
        assert attack.refuses(view) is None
        guess = attack.run(view)
        return guess, {score.limit: score for score in guess.scores(recording.truth)}

    return played
