"""The best evaluation is found again, and the training ends at the same step, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import re
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from device_agent.evaluation.best_evaluation import KEY, BestEvaluation
from device_agent.state_folder import StateFolder
from spliteasy.errors import JobError, StateError
from spliteasy.job import JobSpec
from spliteasy.job.spec import EvaluationSpec
from tests.job.test_optim import spec_with
from tests.simulation import toy


def stopping(**keys: Any) -> BestEvaluation:
    return BestEvaluation(EvaluationSpec.model_validate({"patience": 2, **keys}))


def ends_after(judge: BestEvaluation, values: list[float | None]) -> int | None:
    """The number of evaluations after which the training ends."""
    for number, value in enumerate(values, start=1):
        judge.judge(10 * number, value)
        if judge.finished:
            return number
    return None


def test_patience_counts_evaluations_since_the_best() -> None:
    assert ends_after(stopping(), [3.0, 2.0, 2.5, 1.0, 1.0, 1.5]) == 6
    assert ends_after(stopping(metrics=("f1",)), [0.1, 0.2, 0.2, 0.3, 0.1, 0.3]) == 6
    assert ends_after(stopping(metrics=("f1", "mae"), best_by="mae"), [3.0, 2.0, 1.0]) is None
    assert ends_after(stopping(metrics=("m:f",), best_is="lowest"), [3.0, 2.0, 1.0]) is None
    assert ends_after(stopping(min_delta=0.5), [3.0, 2.6, 2.4, 2.2, 2.0]) == 5
    assert ends_after(stopping(), [nan, 1.0, None, nan]) == 4
    assert ends_after(stopping(), [nan, None]) == 2


def test_an_evaluation_counts_once_and_is_kept() -> None:
    first = stopping()
    for step, value in ((10, 1.0), (20, 2.0), (20, 2.0)):
        first.judge(step, value)
    assert (first.waited, first.best_step, first.judged) == (1, 10, 20)
    again = stopping()
    again.load_state(first.state())
    assert again == first
    again.load_state(None)
    assert (again.waited, again.judged) == (0, -1)
    assert "was best (1) after step 10" in first.why()


def test_another_version_of_the_job_begins_anew() -> None:
    first = stopping()
    first.judge(10, 1.0)
    other = BestEvaluation(first.spec, "1" * 64)
    other.load_state(first.state())
    assert (other.best_step, other.judged) == (0, -1)


def test_the_best_is_kept_where_the_job_says_so() -> None:
    only_best = BestEvaluation(EvaluationSpec(keep_best=True))
    assert ends_after(only_best, [3.0, 2.0, 2.5, 1.0, 1.0, 1.5]) is None
    assert (only_best.kept, stopping().kept) == (40, 0)
    at_the_end = only_best.at_the_end(60)
    assert (at_the_end.judged, at_the_end.waited, at_the_end.ended) == (40, 0, 60)


def test_the_best_of_the_toy_is_not_its_last() -> None:
    """Else the simulation would try nothing."""
    for device in toy.DEVICES:
        own, _, digests = toy.undisturbed(device, toy.KEEPING)
        assert 0 < int(own[KEY][2]) < len(digests)


def checkpoint(value: float) -> dict[str, Tensor]:
    return {"weight": torch.tensor([value])}


def test_the_folder_keeps_the_best_of_every_course_that_it_may_take(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        for step in (2, 4, 6, 8):
            state.save_checkpoint(step, checkpoint(step))
            if step < 8:
                state.keep_best(step)
        state.prune(durable_step=6, history=2)
        assert state.held() == (6, 8)
        assert sorted(path.name[-1] for path in (tmp_path / "best").iterdir()) == ["6"]
        assert (tmp_path / "best" / f"{6:012d}").stat().st_nlink == 2
        state.keep_best(8)
        state.drop_after(6)
        with pytest.raises(StateError, match="no whole checkpoint of step 8"):
            state.load_best(8)
        state.save_checkpoint(9, checkpoint(9))
        state.prune(durable_step=9, history=1)
        assert state.held() == (9,)
        assert state.load_best(6) == checkpoint(6)
        state.go_back(6, checkpoint(6.5))
        assert state.held() == (6,)
    with StateFolder(tmp_path) as again:
        assert again.held() == (6,)
        assert again.load_checkpoint(6) == checkpoint(6.5)
        assert not list((tmp_path / "best").iterdir())


def test_the_best_is_copied_where_a_file_has_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with StateFolder(tmp_path) as state:
        state.save_checkpoint(3, checkpoint(3))
        state.keep_best(3)
        state.save_checkpoint(7, checkpoint(7))
        state.prune(durable_step=7, history=1)
        assert state.load_best(3) == checkpoint(3)


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [
        ({"best_by": "loss"}, "set keep_best = true or patience too"),
        ({"patience": 2, "best_by": "f1"}, "'f1' is not measured; add it to metrics"),
        ({"patience": 2, "every_epochs": 0}, "set every_epochs"),
        ({"patience": 0}, "patience"),
        ({"keep_best": True, "every_epochs": 0}, "set every_epochs"),
    ],
)
def test_what_can_not_be_judged_is_refused(evaluation: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError, match=told):
        spec_with(evaluation=evaluation)


@pytest.mark.parametrize("evaluation", [{"patience": 2}, {"keep_best": True}])
def test_rounds_need_their_devices(evaluation: dict[str, Any]) -> None:
    with pytest.raises(JobError, match="the rounds of \\[fleet\\] need their devices"):
        spec_with(evaluation=evaluation, fleet={"mode": "splitfed", "round_steps": 2})


def test_older_packages_stay_as_they_are() -> None:
    assert not {b"patience", b"keep_best"} & set(re.findall(rb"\w+", spec_with().to_json()))
    spec = spec_with(evaluation={"patience": 2})
    assert JobSpec.model_validate_json(spec.to_json()).evaluation == spec.evaluation
