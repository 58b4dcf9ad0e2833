"""`submit` warns of limits that a cut can't keep to, and `plan` keeps to them where it can."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spliteasy.job import Job, load_job_file, parse_job
from spliteasy.job.spec import LimitsSpec, PlanSpec, PrivacySpec
from spliteasy.planning.conditions import Constraints
from spliteasy.planning.planner import constraints_of
from spliteasy.privacy.advice import advice
from tests.cli.conftest import Project, Ran, _no_stack, new_project, spliteasy  # noqa: F401
from tests.privacy.conftest import DIGITS, ROOT, small_job

LABELS = LimitsSpec(canary_recovery=0.2)
INPUTS = LimitsSpec(input_mse=0.05)


def whys(job: Job, limits: LimitsSpec) -> str:
    return "; ".join(each.why for each in advice(job, limits))


def test_a_tail_without_weights_tells_every_label() -> None:
    job = small_job("weightless", "noise_classes", ["head", "tail"], batch=4, epochs=1)
    assert "the tail has no weights" in whys(job, LABELS)


def test_a_tail_of_one_layer_tells_classes_apart() -> None:
    job = small_job("memorizer", "noise", ["head", "body"], batch=4, epochs=1, loss="mse")
    assert "the tail is one layer" in whys(job, LABELS)


def test_with_one_cut_labels_are_sent() -> None:
    model = {"factory": "tests.privacy.models:memorizer", "example": "tests.privacy.models:noise"}
    spec = {
        "name": "one-cut",
        "batch_size": 4,
        "epochs": 1,
        "share_labels": True,
        "model": {**model, "cuts": ["head"]},
        "loss": {"name": "mse"},
        "optimizer": {"name": "sgd", "lr": 0.1},
    }
    assert "with one cut" in whys(Job.create(parse_job(spec), ROOT), LABELS)


@pytest.mark.parametrize("limits", [LimitsSpec(), LimitsSpec(label_recovery=1.0), LimitsSpec(input_mse=0.0)])
def test_nothing_is_said_where_nothing_is_bounded(limits: LimitsSpec) -> None:
    job = small_job("weightless", "noise_classes", ["head", "tail"], batch=4, epochs=1)
    assert advice(job, limits) == []


def test_a_head_of_one_layer_does_not_hide_inputs() -> None:
    job = small_job("memorizer", "noise", ["head", "body"], batch=4, epochs=1, loss="mse")
    assert "input_mse can't be kept" in whys(job, INPUTS)


def test_plan_keeps_a_layer_in_the_tail_and_one_in_the_head_where_they_are_needed() -> None:
    spec = load_job_file(DIGITS)

    def constraints(plan: PlanSpec | None = None, **privacy: object) -> Constraints:
        changed = {"plan": plan or PlanSpec(), "privacy": PrivacySpec.model_validate(privacy)}
        return constraints_of(spec.model_copy(update=changed))

    assert constraints().min_tail_layers == 1
    assert constraints(gradient_noise=6.0).min_tail_layers == 0
    assert constraints(gradient_noise=6.0, limits=LABELS).min_tail_layers == 1
    assert constraints().min_head_layers == 0
    assert constraints(limits=INPUTS).min_head_layers == 1
    assert constraints(PlanSpec(min_head_layers=3), limits=INPUTS).min_head_layers == 3


def test_ends_that_are_secret_are_not_called_public() -> None:
    spec = load_job_file(DIGITS)
    public = spec.model_copy(update={"privacy": PrivacySpec(ends="public")})
    assert "a worker can follow it" in whys(Job.create(public, ROOT), LABELS)
    assert "a worker can follow it" not in whys(Job.create(spec, ROOT), LABELS)


def test_submit_warns_of_a_limit_that_can_not_be_kept(
    new_project: Callable[..., Project],  # noqa: F811
    spliteasy: Callable[..., Ran],  # noqa: F811
) -> None:
    project = new_project(more="[privacy.limits]\ncanary_recovery = 0.2")
    ran = spliteasy("submit", project.job_file, "--store", f"sqlite:///{project.folder}/store.sqlite")
    assert ran.code == 0, ran.err
    assert "the tail is one layer" in ran.err + ran.out
