"""Each label attack succeeds on a job without defence, or these tests fail: the positive controls."""

from __future__ import annotations

import pytest
import torch

from spliteasy.privacy.attacks.tail_tracking import follow
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.recorder import Recording, view_of
from tests.privacy.conftest import Play


@pytest.mark.parametrize("adversary", [Adversary.WORKER, Adversary.STORE])
def test_tail_tracking_recovers_every_label_and_every_canary(
    digits: Recording, play: Play, adversary: Adversary
) -> None:
    _, scores = play(digits, "tail-tracking", adversary)
    assert scores["label_recovery"].value == 1.0
    assert scores["canary_recovery"].value == 1.0
    assert scores["canary_recovery"].samples == 36


def test_the_tracked_tail_is_the_devices_bit_for_bit(digits: Recording) -> None:
    _, spy = follow(view_of(digits, Adversary.WORKER))
    assert digits.released.tail is not None
    for name, tensor in spy.segment.state_dict().items():
        assert torch.equal(tensor, digits.released.tail[name])


@pytest.mark.parametrize("name", ["cluster-gradients", "cosine", "spectral", "few-labels"])
def test_the_gradients_of_a_linear_tail_tell_labels_and_canaries(
    digits: Recording, play: Play, name: str
) -> None:
    _, scores = play(digits, name)
    assert scores["label_recovery"].low > 0.9
    assert scores["canary_recovery"].value > 0.9
    assert scores["canary_recovery"].chance < 0.25


def test_the_outputs_tell_usual_labels_but_no_canaries(digits: Recording, play: Play) -> None:
    _, scores = play(digits, "cluster-outputs")
    assert scores["label_recovery"].value > 3 * scores["label_recovery"].chance
    assert scores["label_recovery"].low > 2.5 * scores["label_recovery"].chance
    assert scores["canary_recovery"].low <= scores["canary_recovery"].chance


def test_a_tail_without_weights_leaks_every_canary(weightless: Recording, play: Play) -> None:
    _, scores = play(weightless, "tail-tracking")
    assert scores["label_recovery"].value == 1.0
    assert scores["canary_recovery"].value == 1.0


def test_the_length_of_gradients_tells_a_rare_class(rare: Recording, play: Play) -> None:
    _, scores = play(rare, "norm")
    assert scores["label_recovery"].low > 0.9
    assert scores["label_recovery"].low > scores["label_recovery"].chance
    assert scores["canary_recovery"].value > 0.9
