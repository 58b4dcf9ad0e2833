"""`submit` and `plan` say what a browser can't compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import structlog
from torch import nn

from spliteasy.graph import operators
from spliteasy.job.spec import PrivacySpec
from spliteasy_cli.commands.submit import _warn_of_browsers
from spliteasy_cli.support.browser import browser_gaps, gaps, refused_settings, said, supported
from tests.simulation import toy

DP = {"expected_batch": 4, "epsilon": 1.0}


def with_celu() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.CELU(), nn.Linear(5, 5), *(nn.ReLU(),) * 3, nn.Linear(5, 3))


def test_what_is_listed_is_what_graphs_may_call() -> None:
    known = operators.ATEN | operators.BUILTINS.keys()
    listed = supported()
    assert len(listed["operators"] & known) > 300
    assert "aten.add_.Tensor" in listed["in_place"]


@pytest.mark.parametrize("single", [False, True])
def test_a_job_that_a_browser_trains_is_passed_in_silence(single: bool) -> None:
    with structlog.testing.capture_logs() as logs:
        _warn_of_browsers(toy.job(toy.Variant(single=single)))
    assert logs == []


def test_an_operator_that_a_browser_lacks_is_named() -> None:
    job = toy.job(toy.Variant(factory="tests.cli.test_browser:with_celu"))
    assert browser_gaps(job) == ("celu",)
    with structlog.testing.capture_logs() as logs:
        _warn_of_browsers(job)
    assert "celu" in logs[0]["event"]


@pytest.mark.parametrize(
    ("privacy", "named"), [({"peer_labels": True}, "[privacy] peer_labels"), ({"dp": DP}, "[privacy.dp]")]
)
def test_a_setting_that_a_browser_refuses_is_named(privacy: dict[str, Any], named: str) -> None:
    spec = toy.job(toy.Variant()).spec
    assert refused_settings(spec) == ()
    changed = spec.model_copy(update={"privacy": PrivacySpec.model_validate(privacy)})
    assert refused_settings(changed) == (named,)


def test_inputs_that_a_browser_has_no_way_to_give_are_named() -> None:
    job = toy.job(toy.Variant())
    (value,) = job.signature.inputs
    given = (value.model_copy(update={"shape": (2, 3)}), value)
    other = job.signature.model_copy(update={"inputs": given})
    assert browser_gaps(replace(job, signature=other)) == ("more than one input", "inputs of float32[2, 3]")


def test_many_gaps_are_said_in_one_line() -> None:
    missing = gaps([f"aten.none{place}.default" for place in range(20)], ["float32", "float64"])
    assert missing[-1] == "float64"
    assert "and 13 more" in said(missing)
