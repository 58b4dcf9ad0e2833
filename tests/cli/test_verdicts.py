"""The gate's last verdict on a job is kept, and commands that show the job show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spliteasy.errors import UserError
from spliteasy_cli.history.verdicts import (
    GateVerdict,
    VerdictRow,
    keep_verdict,
    line_of,
    newest_of,
    read_verdicts,
)
from tests.cli.conftest import Project, Ran

ATTACK = ("--attack", "tail-tracking", "--steps", "10")


def verdict(*attacks: str, digest: str = "a" * 64, at: float = 1795860000.0) -> GateVerdict:
    """A verdict of digits with these attacks, one of which goes beyond its limit."""
    rows = [
        VerdictRow(
            adversary="worker", attack=name, verdict="ok", measure="linkage", score=0.1, chance=0.1, limit=0.5
        )
        for name in attacks
    ]
    beyond = VerdictRow(
        adversary="worker", attack="linkage", verdict="violation", measure="linkage", score=1.0, limit=0.5
    )
    return GateVerdict(
        job="digits",
        digest=digest,
        at=at,
        cuts=("stem", "pool"),
        steps=48,
        limits={"linkage": 0.5},
        rows=(*rows, beyond),
    )


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "verdicts"
    assert read_verdicts(folder) == {}
    endless = verdict().model_copy(update={"digest": "b" * 64})
    endless = endless.model_copy(
        update={"rows": (endless.rows[0].model_copy(update={"score": float("inf")}),)}
    )
    for each in (verdict("norm"), endless):
        assert keep_verdict(folder, each)
    assert read_verdicts(folder) == {"a" * 64: verdict("norm"), "b" * 64: endless}


def test_a_run_of_some_attacks_does_not_hide_one_of_more(tmp_path: Path) -> None:
    fuller, fewer, others = verdict("norm", "cosine"), verdict("norm"), verdict("spectral")
    assert keep_verdict(tmp_path, fuller)
    assert not keep_verdict(tmp_path, fewer)
    assert read_verdicts(tmp_path) == {fuller.digest: fuller}
    later = verdict("norm", "cosine", at=fuller.at + 1)
    assert keep_verdict(tmp_path, later)
    assert keep_verdict(tmp_path, others)
    assert read_verdicts(tmp_path) == {others.digest: others}


def test_the_line_says_when_by_what_and_under_which_limits() -> None:
    said = verdict("norm")
    assert said.line() == "violations=1 on 2026-11-28 (linkage and norm by worker)"
    assert said.line({"linkage": 0.5}) == said.line()
    assert "under other limits than the job file has now" in said.line({"linkage": 0.6})
    assert "(4 attacks by worker)" in verdict("norm", "cosine", "spectral").line()
    assert "no limit was set" in said.model_copy(update={"limits": {}}).line()
    assert line_of({said.digest: said}, "c" * 64) == "no verdict yet"


def test_the_newest_verdict_of_a_job_is_found_by_its_name() -> None:
    old, new = verdict(digest="1" * 64, at=1.0), verdict(digest="0" * 64, at=2.0)
    assert newest_of([new, old], "digits") == new
    assert newest_of([new, old], "text") is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"job": "digits"', b"\xff"], ids=repr)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    keep_verdict(tmp_path, verdict())
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    with pytest.raises(UserError, match="can't be read") as caught:
        read_verdicts(tmp_path)
    assert str(file) in str(caught.value)


@pytest.mark.rabbitmq
def test_commands_show_what_the_gate_said_last_of_this_version(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], rabbitmq_url: str, tmp_path: Path
) -> None:
    project = new_project(more='[privacy]\nends = "public"\n[privacy.limits]\nlabel_recovery = 0.5\n')
    store = ("--store", f"sqlite:///{tmp_path}/store.sqlite")
    status = ("status", "--broker", rabbitmq_url, *store)
    assert "gate: no verdict yet" in spliteasy("submit", project.job_file, *store).err
    assert "no verdict yet" in spliteasy(*status).out
    assert "gate: no verdict yet" in spliteasy("plan", project.job_file).out

    assert spliteasy("leakage", project.job_file, *ATTACK).code == 1
    assert "gate: violations=1 on " in spliteasy("submit", project.job_file, *store).err
    assert "violations=1 on " in spliteasy(*status).out
    (digest,) = json.loads(spliteasy(*status, "--json").out)["jobs"]["tiny"]
    kept = json.loads(spliteasy(*status, "--json").out)["gate"][digest]
    assert kept["violations"] == 1
    assert {row["measure"]: row["verdict"] for row in kept["rows"]} == {
        "label_recovery": "violation",
        "canary_recovery": "no limit",
    }
    file = project.job_file
    file.write_text(file.read_text().replace("label_recovery = 0.5", "label_recovery = 0.6"))
    assert "under other limits" in spliteasy("submit", file, *store).err, "limits are not of the version"
    refused = spliteasy("plan", file)
    assert refused.code == 2, "what was found at one cut is taken to hold behind tails of as few layers"
    assert "[privacy.limits]" in refused.error
    assert "label_recovery" in refused.error
    assert "by tail-tracking, limit 0.6 at" not in refused.error
    file.write_text(file.read_text().replace("seed = 3", "seed = 4"))
    assert "gate: no verdict yet" in spliteasy("submit", file, *store).err, "it is another version"


def test_plan_lets_the_gate_look_at_what_it_would_propose(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    project = new_project(more="[privacy.limits]\nlabel_recovery = 1.0\n")
    folder, data = tmp_path / "verdicts", ("--data", f"{project.module}:device_data")
    ran = spliteasy("plan", project.job_file, "--verdicts", folder, *data)
    assert ran.code == 0, ran.err
    (kept,) = read_verdicts(folder).values()
    assert "gate: violations=0 on " in ran.out
    assert f"cut: {' | '.join(kept.cuts)}" in ran.out
