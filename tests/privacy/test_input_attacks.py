"""Each attack on inputs succeeds on a job without defence, or these tests fail: the positive controls."""

from __future__ import annotations

import pytest

from spliteasy.privacy import picture
from spliteasy.privacy.guesses import InputGuess
from spliteasy.privacy.record import Adversary
from spliteasy_cli.leakage.recorder import Recording
from tests.privacy.conftest import Play


@pytest.mark.parametrize(
    ("name", "adversary", "error"),
    [
        ("head-tracking", Adversary.WORKER, 0.001),
        ("inversion", Adversary.WORKER, 0.001),
        ("inversion", Adversary.HOLDER, 0.001),
        ("linear-decoder", Adversary.WORKER, 0.01),
        ("linear-decoder", Adversary.HOLDER, 0.02),
        ("convolutional-decoder", Adversary.WORKER, 0.01),
        ("unsplit", Adversary.WORKER, 0.001),
    ],
)
def test_each_attack_reconstructs_the_digits(
    digits: Recording, play: Play, name: str, adversary: Adversary, error: float
) -> None:
    _, scores = play(digits, name, adversary)
    score = scores["input_mse"]
    assert score.high < error
    assert score.chance > 0.07


def test_the_picture_shows_reconstructions_beside_their_originals(
    digits: Recording, play: Play, tmp_path_factory: pytest.TempPathFactory
) -> None:
    guess, _ = play(digits, "linear-decoder")
    assert isinstance(guess, InputGuess)
    file = tmp_path_factory.mktemp("picture") / "leakage.png"
    assert picture.draw(file, [("linear-decoder", guess, digits.truth)])
    assert file.read_bytes().startswith(b"\x89PNG")
