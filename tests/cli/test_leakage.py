"""`spliteasy leakage` on a small job."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import Project, Ran


def last_line(ran: Ran) -> str:
    return ran.out.strip().splitlines()[-1]


def test_scores_beyond_a_limit_are_violations(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran]
) -> None:
    project = new_project(
        more='[privacy]\nends = "public"\n[privacy.limits]\nlabel_recovery = 0.5\ncanary_recovery = 1.0\n'
    )
    options = ["--attack", "tail-tracking", "--steps", "10", "--out", project.folder / "out"]
    ran = spliteasy("leakage", project.job_file, *options)
    assert ran.code == 1, ran.err
    assert last_line(ran) == "violations=1"
    labels = next(line for line in ran.out.splitlines() if "label_recovery" in line)
    assert "1.0000" in labels
    assert "≤ 0.5" in labels
    assert "violation" in labels
    assert "ok" in next(line for line in ran.out.splitlines() if "canary_recovery" in line)


def test_without_limits_nothing_is_a_violation_and_every_adversary_is_looked_at(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran]
) -> None:
    project = new_project()
    options = ["--attack", "cluster-gradients", "--attack", "linear-decoder", "--steps", "10"]
    ran = spliteasy("leakage", project.job_file, "--adversary", "all", *options)
    assert ran.code == 0, ran.err
    assert last_line(ran) == "violations=0"
    for adversary in ("worker", "store", "holder"):
        assert adversary in ran.out
    assert "no limit" in ran.out


def test_all_cuts_gives_rows_for_other_cuts(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran]
) -> None:
    project = new_project()
    ran = spliteasy(
        "leakage", project.job_file, "--cuts", "all", "--attack", "cluster-gradients", "--steps", "2"
    )
    assert ran.code == 0, ran.err
    assert "stem | middle " in ran.out
    assert "stem | middle.0 " in ran.out
    assert "stem.0 | middle " in ran.out


def test_with_one_cut_labels_are_shared_and_not_attacked(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran]
) -> None:
    project = new_project(cuts='["stem"]', top="share_labels = true")
    ran = spliteasy("leakage", project.job_file, "--attack", "tail-tracking", "--steps", "5")
    assert ran.code == 0, ran.err
    assert "not tried: labels are shared" in ran.out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--attack", "magic"], "there is no attack 'magic'"),
        (["--adversary", "neighbour"], "--adversary 'neighbour' is not known"),
        (["--cuts", "some"], "--cuts 'some' is not known"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], options: list[str], error: str
) -> None:
    ran = spliteasy("leakage", new_project().job_file, *options)
    assert ran.code == 2
    assert error in ran.error


def test_short_says_in_two_lines_what_a_worker_recovers(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran]
) -> None:
    ran = spliteasy("leakage", new_project().job_file, "--short")
    assert ran.code == 0, ran.err
    labels, inputs, last = ran.out.strip().splitlines()
    assert labels.startswith("labels: a worker that follows the tail recovers ")
    assert inputs.startswith(
        "inputs: a worker that follows the head computes them with a mean squared error of "
    )
    assert last == "violations=0"
