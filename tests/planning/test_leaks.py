"""Cuts at which `[privacy.limits]` did not hold are not proposed, nor those of which the same follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from spliteasy.errors import CutError
from spliteasy.job import JobSpec
from spliteasy.planning.leaks import Layers, Leak, reaches
from spliteasy.planning.planner import CutPlan, plan_job

NewSpec = Callable[..., JobSpec]
WHY = "canary_recovery 1 by cosine, limit 0.2"


@pytest.mark.parametrize(
    ("side", "head", "tail", "reached"),
    [
        ("tail", 9, 1, True),
        ("tail", 1, 2, False),
        ("head", 2, 9, True),
        ("head", 1, 9, True),
        ("head", 3, 1, False),
        ("pair", 2, 1, False),
    ],
)
def test_a_leak_reaches_ends_of_as_few_layers(side: str, head: int, tail: int, reached: bool) -> None:
    leak = Leak(cuts=("a", "b"), side=side, why=WHY)  # type: ignore[arg-type]
    assert reaches(leak, Layers((1, 5), 2, 1), Layers((2, 4), head, tail)) is reached
    assert reaches(leak, Layers((1, 5), 2, 1), Layers((1, 5), 2, 1))


def layers_of(plan: CutPlan, end: int) -> int:
    """Parameters of the proposed head or tail: more layers have more of them."""
    return plan.best.parameters[end]


def test_a_known_leak_changes_what_is_proposed_and_is_named(new_spec: NewSpec, tmp_path: Path) -> None:
    plain = plan_job(new_spec(), tmp_path, budget_s=0.1)
    leak = Leak(cuts=plain.best.cuts, side="tail", why=WHY)
    found = plan_job(new_spec(), tmp_path, budget_s=0.1, leaks=[leak])
    assert layers_of(found, -1) > layers_of(plain, -1)
    assert not found.best.violates
    marked = [row for row in found.rows if "limits" in row.violates]
    assert all(row.why == f"{WHY} at {' | '.join(plain.best.cuts)}" for row in marked)


def test_each_proposal_is_judged_until_one_holds(new_spec: NewSpec, tmp_path: Path) -> None:
    asked: list[tuple[str, ...]] = []

    def judge(cuts: tuple[str, ...]) -> list[Leak]:
        asked.append(cuts)
        return [Leak(cuts=cuts, side="tail", why=WHY)] if len(asked) == 1 else []

    found = plan_job(new_spec(), tmp_path, budget_s=0.1, judge=judge)
    assert len(asked) == 2
    assert asked[0] != asked[1] == found.best.cuts


def test_where_none_holds_the_error_says_what_was_measured(new_spec: NewSpec, tmp_path: Path) -> None:
    with pytest.raises(CutError, match=r"no cut is left that may keep to \[privacy.limits\]") as caught:
        plan_job(
            new_spec(), tmp_path, budget_s=0.1, judge=lambda cuts: [Leak(cuts=cuts, side="tail", why=WHY)]
        )
    assert WHY in str(caught.value)
    assert "add a defence" in str(caught.value.hint)


def test_leaks_at_places_that_the_model_has_no_more_are_passed_over(
    new_spec: NewSpec, tmp_path: Path
) -> None:
    gone = Leak(cuts=("was", "here"), side="tail", why=WHY)
    assert not plan_job(new_spec(), tmp_path, budget_s=0.1, leaks=[gone]).best.violates
