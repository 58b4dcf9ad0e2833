"""Membership, linkage, properties and tokens: each succeeds where nothing stands against it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spliteasy.job import Job
from spliteasy.privacy.attacks import ATTACKS, FSHA
from spliteasy.privacy.hijack import WINDOW
from spliteasy.privacy.record import Adversary
from spliteasy.training.segment_trainer import tensors_of
from spliteasy_cli.leakage.recorder import Recording, record, view_of
from tests.privacy.conftest import ROOT, Play


def test_what_was_learned_by_heart_tells_who_was_trained_on(memorized: Recording, play: Play) -> None:
    _, scores = play(memorized, "membership", Adversary.HOLDER)
    assert scores["membership_advantage"].low > 0.3


def test_a_candidate_is_found_among_the_activations_of_a_known_head(memorized: Recording, play: Play) -> None:
    _, scores = play(memorized, "membership-match")
    assert scores["membership_advantage"].low > 0.5


def test_a_sample_is_found_again_in_the_next_epoch(memorized: Recording, play: Play) -> None:
    _, scores = play(memorized, "linkage")
    assert scores["linkage"].low > 0.9
    assert scores["linkage"].chance == 1 / 64


def test_evaluations_tell_what_steps_tell(digits: Recording, play: Play) -> None:
    """With public ends each attack on evaluations succeeds: the positive control."""
    assert len({each.step for each in view_of(digits, Adversary.WORKER).evaluations}) >= 2
    _, scores = play(digits, "evaluation-labels")
    assert scores["label_recovery"].low > scores["label_recovery"].chance + 0.3
    _, scores = play(digits, "evaluation-linkage")
    assert scores["linkage"].low > 20 * scores["linkage"].chance
    _, scores = play(digits, "evaluation-inversion", Adversary.HOLDER)
    assert scores["input_mse"].high < 0.5 * scores["input_mse"].chance


def test_predictions_tell_what_evaluations_tell(digits: Recording, play: Play) -> None:
    """With public ends each attack on predictions succeeds: the positive control."""
    predicted = [
        each for each in view_of(digits, Adversary.WORKER).evaluations if each.purpose == "prediction"
    ]
    assert [each.step for each in predicted] == [len(digits.steps)]
    _, scores = play(digits, "prediction-labels")
    assert scores["label_recovery"].low > scores["label_recovery"].chance + 0.3
    _, scores = play(digits, "prediction-linkage")
    assert scores["linkage"].low > 20 * scores["linkage"].chance
    _, scores = play(digits, "prediction-inversion", Adversary.HOLDER)
    assert scores["input_mse"].high < 0.5 * scores["input_mse"].chance


def test_predictions_pass_the_defences_and_are_of_training_samples_where_there_is_no_test_data(
    memorized: Recording, tmp_path: Path
) -> None:
    clipped = memorized.job.spec.privacy.model_copy(update={"clip_activations": 0.1})
    job = Job.create(memorized.job.spec.model_copy(update={"privacy": clipped}), ROOT)
    recording = asyncio.run(record(job, replace(memorized.sample, test=None), tmp_path, steps=2))
    (predicted,) = view_of(recording, Adversary.WORKER).evaluations
    assert (predicted.purpose, predicted.step) == ("prediction", 2)
    (sent,) = tensors_of(predicted.activations)
    assert float(sent.norm(dim=1).max()) <= 0.1 + 1e-6
    assert recording.truth.evaluated is not None
    asked = recording.truth.evaluated.inputs[0][0]
    assert torch.equal(asked, recording.members[0][0][: len(asked)])


def test_a_reader_of_the_store_sees_no_evaluation(digits: Recording) -> None:
    assert view_of(digits, Adversary.STORE).evaluations == ()


def test_brightness_shows_in_the_activations(digits: Recording, play: Play) -> None:
    _, scores = play(digits, "property")
    assert scores["property_inference"].low > 0.75
    assert scores["property_inference"].chance < 0.6


def test_every_token_is_read_from_the_first_block(text: Recording, play: Play) -> None:
    _, scores = play(text, "tokens")
    assert scores["token_recovery"].value == 1.0
    assert scores["token_recovery"].chance < 0.2
    _, scores = play(text, "tokens", Adversary.HOLDER)
    assert scores["token_recovery"].value > 0.9


@pytest.fixture(scope="module")
def hijacked(digits: Recording, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The digits job with a worker that hijacks it."""
    hijacker = FSHA.hijacker(replace(view_of(digits, Adversary.ACTIVE), steps=()))
    folder = tmp_path_factory.mktemp("hijacked")
    return asyncio.run(record(digits.job, digits.sample, folder, steps=36, hijacker=hijacker))


def test_a_worker_that_hijacks_the_head_reads_the_digits(hijacked: Recording, play: Play) -> None:
    _, scores = play(hijacked, "fsha", Adversary.ACTIVE)
    assert scores["input_mse"].high < 0.75 * scores["input_mse"].chance


def test_the_guard_notices_the_hijacker_with_its_first_window_and_spares_the_honest(
    digits: Recording, hijacked: Recording, play: Play
) -> None:
    _, scores = play(hijacked, "hijack-guard", Adversary.ACTIVE)
    assert scores["hijack_unnoticed"].value == (WINDOW - 1) / 36
    _, scores = play(digits, "hijack-guard", Adversary.WORKER)
    assert scores["hijack_false_alarms"].value == 0.0


def test_every_attack_names_its_source_and_a_name_of_its_own() -> None:
    assert len(ATTACKS) >= 16
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert all(attack.source and attack.adversaries for attack in ATTACKS)
