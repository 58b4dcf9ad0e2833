"""Progress and report of a run."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from device_agent.observations import Evaluated, RoundEnded, StateChanged, StepTaken
from spliteasy.runtime.readable import size
from spliteasy_cli.history import report
from spliteasy_cli.history.report import DeviceRun
from spliteasy_cli.watch.progress import ProgressBoard, line, line_of_all
from spliteasy_cli.watch.run_recorder import Watcher


def step_taken(step: int, *, loss: float | None = 0.5, up: int = 0, down: int = 0) -> StepTaken:
    return StepTaken(
        device="phone-1", step=step, total_steps=4, epoch=0, loss=loss, samples=10, seconds=0.5,
        bytes_up=up, bytes_down=down,
    )  # fmt: skip


def evaluated(step: int, accuracy: float | None = 0.75) -> Evaluated:
    return Evaluated(device="phone-1", step=step, samples=8, loss=0.3, accuracy=accuracy)


def watched() -> DeviceRun:
    """Four steps of 100 + 50 bytes, after 1000 bytes of the job; 700 bytes of evaluation after step 2."""
    watcher = Watcher(["phone-1"], lambda run, notable: None)
    watcher(StateChanged(device="phone-1", text="training"))
    watcher(step_taken(1, loss=4.0, up=100, down=1050))
    watcher(step_taken(2, loss=3.0, up=200, down=1100))
    watcher(evaluated(2))
    watcher(step_taken(3, loss=2.0, up=600, down=1550))
    watcher(step_taken(4, loss=1.0, up=700, down=1600))
    watcher(evaluated(4, 0.9))
    return watcher.runs["phone-1"]


def test_a_run_is_summed_up() -> None:
    assert watched().summary() == {
        "device": "phone-1",
        "steps": 4,
        "train_loss": 2.5,
        "test_accuracy": 0.9,
        "bytes_up": 700,
        "bytes_down": 1600,
        "ms_per_step": 500.0,
    }


def test_what_is_not_finite_or_was_not_measured_is_said(tmp_path: Path) -> None:
    watcher = Watcher(["phone-1"], lambda run, notable: None)
    watcher(step_taken(1, loss=None))
    watcher(Evaluated(device="phone-1", step=1, samples=8, loss=float("nan"), accuracy=None))
    run = watcher.runs["phone-1"]
    assert (run.steps, run.losses) == (1, [])
    report.write_json(tmp_path / "report.json", [run], {})
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["devices"][0]["train_loss"], written["devices"][0]["test_accuracy"]) == (None, None)
    assert written["curves"]["phone-1"]["evaluations"] == [
        {"step": 1, "loss": "not finite", "accuracy": None}
    ]
    console = Console(file=io.StringIO(), width=120)
    console.print(report.table([run]))
    assert console.file.getvalue().count("not measured") == 2  # type: ignore[attr-defined]
    assert report.number(float("nan"), ".4f") == "not finite"
    report.draw(tmp_path / "report.png", [run], "nothing to draw")


def test_bytes_per_step_leave_out_the_job_and_evaluations() -> None:
    run = watched()
    assert run.step_bytes == [150, 150]
    assert run.bytes_per_step == 150


def test_what_is_left_is_told_by_the_last_steps() -> None:
    run = watched()
    assert (run.seconds_left, run.bytes_left) == (None, None), "nothing is left"
    run.total_steps = 10
    run.lately.extend([30.0] * 50)
    run.step_bytes = [10**9, *[200_000] * 50]
    assert (run.seconds_left, run.bytes_left) == (180.0, 1_200_000)
    assert line(run).endswith("left about 3 min, 1.2 MB")


def test_the_loss_is_a_mean_of_the_last_steps() -> None:
    run = DeviceRun("phone-1", losses=[(n, float(n)) for n in range(1, 101)])
    assert run.train_loss == sum(range(81, 101)) / 20


def test_a_run_without_steps() -> None:
    run = DeviceRun("phone-1")
    assert run.summary()["train_loss"] is None
    assert run.summary()["ms_per_step"] is None
    assert "step 0  loss –  accuracy –" in line(run)


def test_the_report_is_json_with_curves(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write_json(path, [watched()], {"job": "tiny"})
    written = json.loads(path.read_text())
    assert written["job"] == "tiny"
    assert written["devices"] == [watched().summary()]
    assert written["curves"]["phone-1"] == {
        "train_loss": [[1, 4.0], [2, 3.0], [3, 2.0], [4, 1.0]],
        "evaluations": [
            {"step": 2, "loss": 0.3, "accuracy": 0.75},
            {"step": 4, "loss": 0.3, "accuracy": 0.9},
        ],
    }


def test_a_training_that_went_back_is_reported_by_its_best_evaluation(tmp_path: Path) -> None:
    run = DeviceRun(
        "phone-1",
        losses=[(n, 1.0) for n in range(1, 31)],
        evaluations=[(10, 1.0, 0.5), (20, 0.5, 0.9), (30, 0.7, 0.8), (20, 0.5, 0.9)],
        metrics={10: {"f1": 0.4}, 20: {"f1": 0.85}, 30: {"f1": 0.7}},
    )
    assert run.test_accuracy == 0.9
    assert run.test_metrics == {"f1": 0.85}
    report.draw(tmp_path / "report.png", [run], "title")


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(DeviceRun("phone-1"), id="nothing"),
        pytest.param(DeviceRun("a", losses=[(1, 0.0)], evaluations=[(1, 0.0, None)]), id="no-accuracy"),
        pytest.param(DeviceRun("a", losses=[(1, float("nan")), (2, -1.0)]), id="odd-losses"),
    ],
)
def test_every_run_can_be_drawn(run: DeviceRun, tmp_path: Path) -> None:
    report.draw(tmp_path / "report.png", [run, watched()], "title")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_table() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(report.table([watched()]))
    row = next(text for text in out.getvalue().splitlines() if "phone-1" in text)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "phone-1", "4", "2.5000", "0.9000", "150", "500.0"
    ]  # fmt: skip


def board_output(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    run = watched()
    with ProgressBoard([run], title="tiny", console=console) as board:
        board.tell(run)
        board.tell(run)
        board.tell(run, now=True)
    return out.getvalue()


def test_without_a_terminal_progress_is_plain_lines() -> None:
    """The second of three comes too soon after the first."""
    expected = (
        "phone-1  training  step 4/4  loss 2.5000  accuracy 0.9000  20 samples/s  up 700 B  down 1.6 kB"
    )
    assert board_output(terminal=False).splitlines() == ["tiny", expected, expected]


def test_on_a_terminal_progress_is_one_table() -> None:
    out = board_output(terminal=True)
    assert "samples/s" in out
    assert "step 4/4" not in out
    assert "4/4" in out


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e6, "2.5 MB"), (7e12, "7000.0 GB")]
)
def test_size(count: float, text: str) -> None:
    assert size(count) == text


def many(count: int) -> list[DeviceRun]:
    """Devices of which number n has the accuracy n / count."""
    watcher = Watcher([f"phone-{n}" for n in range(count)], lambda run, notable: None)
    for number, run in enumerate(watcher.runs.values()):
        watcher(replace(step_taken(4, loss=1.0, up=10, down=20), device=run.device))
        watcher(replace(evaluated(4, number / count), device=run.device))
        watcher(RoundEnded(device=run.device, round=7, record="ab" * 32, step=4))
        text = ("done", "waiting for the other devices of the round", "training")[number % 3]
        watcher(StateChanged(device=run.device, text=text))
    return list(watcher.runs.values())


def test_many_devices_are_told_of_in_one_line() -> None:
    runs, out = many(300), io.StringIO()
    with ProgressBoard(runs, title="digits", console=Console(file=out, width=300)) as board:
        for run in runs:
            board.tell(run, now=True)
    title, told = out.getvalue().splitlines()
    assert title == "digits"
    assert told == line_of_all(runs)
    assert told.startswith("300 devices: 100 at work, 100 waiting, 100 done  round 7  1200 steps in all")
    assert "accuracy 0.0000 least, 0.4983 median  up 3" in told


def test_the_closing_table_of_many_devices_shows_three() -> None:
    out = io.StringIO()
    Console(file=out, width=200).print(report.table(many(300)))
    assert [name for name in out.getvalue().split() if name.startswith("phone-")] == [
        "phone-0",
        "phone-150",
        "phone-299",
    ]
    assert "of 300 devices" in out.getvalue()


def test_the_picture_of_many_devices_names_none(tmp_path: Path) -> None:
    report.draw(tmp_path / "report.png", many(30), "digits")
    assert (tmp_path / "report.png").stat().st_size > 1000
