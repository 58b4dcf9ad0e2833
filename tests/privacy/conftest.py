"""Trainings that are recorded once for all tests of attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from spliteasy.cli.gate import attacks_named
from spliteasy.cli.recording import Recording, draw_sample, record, view_of
from spliteasy.job import Job, JobSpec, load_job_file
from spliteasy.privacy.guesses import Guess, Score
from spliteasy.privacy.record import Adversary

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples/digits/job.toml"
DATA = "examples.digits:device_data"
STEPS = 36
"""Three epochs of the digits."""


@pytest.fixture(scope="session")
def digits_spec() -> JobSpec:
    return load_job_file(DIGITS)


@pytest.fixture(scope="session")
def digits(digits_spec: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The digits job without any defence."""
    job = Job.create(digits_spec, ROOT)
    folder = tmp_path_factory.mktemp("digits")
    return asyncio.run(record(job, draw_sample(job, DATA, ROOT), folder, steps=STEPS))


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
