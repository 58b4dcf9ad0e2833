"""A training that no longer improves ends, at the same step whatever happens on the way."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest

from device_agent.evaluation.early_stopping import EarlyStopping
from spliteasy.errors import JobError
from spliteasy.job import JobSpec
from spliteasy.job.spec import EvaluationSpec
from tests.job.test_optim import spec_with


def stopping(**keys: Any) -> EarlyStopping:
    return EarlyStopping(EvaluationSpec.model_validate({"patience": 2, **keys}))


def ends_after(judge: EarlyStopping, values: list[float | None]) -> int | None:
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


@pytest.mark.parametrize(
    ("evaluation", "told"),
    [
        ({"best_by": "loss"}, "set patience too"),
        ({"patience": 2, "best_by": "f1"}, "'f1' is not measured; add it to metrics"),
        ({"patience": 2, "every_epochs": 0}, "set every_epochs"),
        ({"patience": 0}, "patience"),
    ],
)
def test_what_can_not_be_judged_is_refused(evaluation: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError, match=told):
        spec_with(evaluation=evaluation)


def test_rounds_need_their_devices() -> None:
    with pytest.raises(JobError, match="the rounds of \\[fleet\\] need their devices"):
        spec_with(evaluation={"patience": 2}, fleet={"mode": "splitfed", "round_steps": 2})


def test_older_packages_stay_as_they_are() -> None:
    assert b"patience" not in spec_with().to_json()
    spec = spec_with(evaluation={"patience": 2})
    assert JobSpec.model_validate_json(spec.to_json()).evaluation == spec.evaluation
