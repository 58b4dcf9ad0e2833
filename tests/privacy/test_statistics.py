"""The arithmetic behind the scores, against values that are known otherwise."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from spliteasy.job.spec import LimitsSpec
from spliteasy.privacy.limits import LIMIT_KEYS, passes
from spliteasy.privacy.statistics import best_matching, bootstrap, k_means, matched_chance, wilson


def test_wilson_gives_the_published_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, the score method without correction.
    low, high = wilson(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0)


def test_the_bootstrap_covers_the_mean_and_nothing_far() -> None:
    low, high = bootstrap(torch.arange(100.0))
    assert 40 < low < 49.5 < high < 60


def test_the_best_matching_is_the_best_of_all_namings() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        guessed, true = (torch.randint(5, (40,), generator=generator) for _ in range(2))
        hits = int((best_matching(guessed, true, 5)[guessed] == true).sum())
        every = [int((torch.tensor(names)[guessed] == true).sum()) for names in permutations(range(5))]
        assert hits == max(every)


def test_chance_under_the_best_names_is_above_one_in_ten() -> None:
    generator = torch.Generator().manual_seed(0)
    guessed, true = (torch.randint(10, (200,), generator=generator) for _ in range(2))
    chance = matched_chance(guessed, true, torch.ones(200, dtype=torch.bool), 10)
    assert 0.12 < chance < 0.25


def test_k_means_finds_clusters_that_are_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 2, generator=generator) * 0.1 + torch.tensor([[0.0, 0], [5, 0], [0, 5]]).repeat(
        20, 1
    )
    found = k_means(rows, 3)
    assert [len(set(found[place::3].tolist())) for place in range(3)] == [1, 1, 1]
    assert len(set(found.tolist())) == 3


def test_every_limit_can_be_set_in_a_job_file() -> None:
    assert set(LimitsSpec.model_fields) == set(LIMIT_KEYS)


@pytest.mark.parametrize(
    ("key", "value", "kept"),
    [
        ("label_recovery", 0.2, True),
        ("label_recovery", 0.21, False),
        ("input_mse", 0.2, True),
        ("input_mse", 0.19, False),
    ],
)
def test_errors_are_bounded_from_below_and_all_else_from_above(key: str, value: float, kept: bool) -> None:
    assert passes(key, value, 0.2) is kept  # type: ignore[arg-type]
