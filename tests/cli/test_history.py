"""The history of a run holds JSON lines, and TensorBoard's events read back by TensorBoard itself."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent.observations import Evaluated, Observation, StateChanged, StepTaken
from spliteasy.errors import UserError
from spliteasy_cli.history.mlflow_history import MlflowHistory
from spliteasy_cli.history.run_history import History, tell_all
from tests.cli.conftest import Project, Ran


def a_step(step: int, *, loss: float = 0.5, device: str = "phone-1") -> StepTaken:
    return StepTaken(
        device=device,
        step=step,
        total_steps=10,
        epoch=1,
        loss=loss,
        samples=8,
        seconds=0.25,
        bytes_up=100 * step,
        bytes_down=50 * step,
    )


TOLD: tuple[Observation, ...] = (
    StateChanged(device="phone-1", text="training"),
    a_step(1),
    a_step(2, loss=float("nan")),
    Evaluated(device="phone-1", step=2, samples=4, loss=0.25, accuracy=0.75),
)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_moment_is_a_line_and_a_run_that_goes_on_appends(tmp_path: Path) -> None:
    for observations in (TOLD[:2], TOLD[2:]):
        with History(tmp_path / "new" / "folder", clock=lambda: 12.5) as history:
            for observation in observations:
                history(observation)
            assert lines(tmp_path / "new/folder/phone-1.jsonl"), "written at once, not at the end"
    assert lines(tmp_path / "new/folder/phone-1.jsonl") == [
        {"time": 12.5, "event": "state", "text": "training"},
        {
            "time": 12.5, "event": "step", "step": 1, "epoch": 1, "loss": 0.5, "samples": 8, "seconds": 0.25,
            "bytes_up": 100, "bytes_down": 50,
        },
        {
            "time": 12.5, "event": "step", "step": 2, "epoch": 1, "loss": None, "samples": 8, "seconds": 0.25,
            "bytes_up": 200, "bytes_down": 100,
        },
        {"time": 12.5, "event": "evaluation", "step": 2, "loss": 0.25, "accuracy": 0.75, "samples": 4},
    ]  # fmt: skip


def test_each_device_has_a_file(tmp_path: Path) -> None:
    with History(tmp_path) as history:
        history(a_step(1, device="phone-1"))
        history(a_step(4, device="phone-2"))
    assert [line["step"] for line in lines(tmp_path / "phone-2.jsonl")] == [4]


def test_tensorboard_reads_its_events(tmp_path: Path) -> None:
    accumulation = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with History(tmp_path, tensorboard=True) as history:
        for observation in TOLD:
            history(observation)
    events = accumulation.EventAccumulator(str(tmp_path / "tensorboard/phone-1")).Reload()
    first, *_ = events.Scalars("train/loss")
    assert (first.step, first.value) == (1, 0.5)
    assert [(event.step, event.value) for event in events.Scalars("test/accuracy")] == [(2, 0.75)]


def test_tensorboard_that_is_missing_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="--tensorboard needs"), History(tmp_path, tensorboard=True):
        raise AssertionError("unreachable")


def test_a_folder_that_cannot_be_made_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no history in"), History(tmp_path / "file"):
        raise AssertionError("unreachable")


def test_a_disk_that_fails_ends_the_history_and_not_the_training(tmp_path: Path) -> None:
    seen: list[Observation] = []
    with History(tmp_path) as history:
        (tmp_path / "phone-1.jsonl").mkdir()
        observe = tell_all(history, seen.append)
        for observation in TOLD:
            observe(observation)
    assert seen == list(TOLD)


def test_train_keeps_a_history_and_a_new_run_begins_it_anew(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=1)
    for _ in range(2):
        assert spliteasy("train", project.job_file, "--out", "out").code == 0
        told = lines(Path("out/history/phone-1.jsonl"))
        assert [line["step"] for line in told if line["event"] == "step"] == [1, 2, 3, 4, 5]
        assert any(line["event"] == "evaluation" for line in told)


def test_agent_wants_a_folder_for_its_tensorboard_events(spliteasy: Callable[..., Ran]) -> None:
    command = "agent --job x --device d --data m:f --broker amqp://localhost --tensorboard"
    ran = spliteasy(*command.split())
    assert "--tensorboard goes with a history" in ran.error


def test_mlflow_reads_its_metrics_and_a_run_that_goes_on_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    uri = (tmp_path / "mlruns").as_uri()
    for observations in (TOLD[:2], TOLD[2:]):
        with MlflowHistory(uri, "digits", "0" * 64, clock=lambda: 12.5) as history:
            for observation in observations:
                history(observation)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("spliteasy/digits").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("phone-1", "FINISHED")
    assert run.data.tags["spliteasy.state"] == "training"
    first, *_ = client.get_metric_history(run.info.run_id, "train/loss")
    assert (first.step, first.value, first.timestamp) == (1, 0.5, 12_500)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "link/bytes_up")] == [1, 2]
    assert run.data.metrics["test/accuracy"] == 0.75
    with MlflowHistory(uri, "digits", "0" * 64, fresh=True) as history:
        history(a_step(1))
    assert len(client.search_runs([experiment])) == 2


def test_an_mlflow_that_fails_ends_its_history_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no MLflow at"), MlflowHistory("file:" + str(tmp_path / "file"), "a"):
        raise AssertionError("unreachable")
    with MlflowHistory((tmp_path / "mlruns").as_uri(), "digits") as history:
        shutil.rmtree(tmp_path / "mlruns")
        (tmp_path / "mlruns").write_text("")
        for observation in TOLD:
            history(observation)


def test_mlflow_that_is_missing_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="--mlflow needs"), MlflowHistory("file:x", "digits"):
        raise AssertionError("unreachable")
