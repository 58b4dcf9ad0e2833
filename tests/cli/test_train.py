"""A whole training in one process; what it writes; stopping and going on; merge and predict afterwards."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from spliteasy_cli import main
from tests.cli.conftest import ROOT, Project, Ran, finish, read_until, started

DIGITS = ROOT / "examples/digits/job.toml"
SECRET = "5e" * 32
"""The secret of every device here, so that a test gives the same numbers each time."""


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def weights(state: Path, into: Path) -> dict[str, torch.Tensor]:
    """The merged model of a device."""
    assert main(["merge", "--state", str(state), "-o", str(into)]) == 0
    return safetensors.torch.load_file(into)


def test_train_writes_table_report_and_picture(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=4)
    out = Path("out")
    ran = spliteasy("train", project.job_file, "--devices", 2, "--workers", 2, "--out", out)
    assert ran.code == 0, ran.err
    report = report_of(out)
    assert [entry["device"] for entry in report["devices"]] == ["phone-1", "phone-2"]
    assert set(report["devices"][0]) == {
        "device",
        "steps",
        "train_loss",
        "test_accuracy",
        "bytes_up",
        "bytes_down",
        "ms_per_step",
    }
    for entry in report["devices"]:
        assert entry["steps"] == 20
        assert 0 < entry["train_loss"] < 2
        assert 0 <= entry["test_accuracy"] <= 1
        assert entry["bytes_up"] > 20 * 8 * 12 * 4
        assert entry["bytes_down"] > 20 * 8 * 12 * 4
        assert entry["ms_per_step"] > 0
    evaluations = report["curves"]["phone-1"]["evaluations"]
    assert [evaluation["step"] for evaluation in evaluations] == [10, 20]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "phone-1  training  step 10/20" in ran.out
    assert all(word in ran.out for word in ("bytes/step", "ms/step", "test accuracy", "report.png"))


def test_training_anew_replaces_the_old_one(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=1)
    for _ in range(2):
        assert spliteasy("train", project.job_file, "--out", "out").code == 0
        assert report_of(Path("out"))["devices"][0]["steps"] == 5


def test_merge_and_predict_give_the_trained_model(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project()
    assert spliteasy("train", project.job_file, "--out", "out").code == 0
    state = Path("out/devices/phone-1")
    merged = weights(state, tmp_path / "model.safetensors")
    model: nn.Module = sys.modules[project.module].build()
    model.load_state_dict(merged)
    model.eval()
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    np.save("x.npy", x.numpy())
    ran = spliteasy("predict", "--state", state, "--inputs", "x.npy", "-o", "y.npy")
    assert ran.code == 0, ran.err
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in x.split(256)])
    assert np.array_equal(np.load("y.npy"), expected.numpy())
    safetensors.torch.save_file({"x": x}, "x.safetensors")
    assert (
        spliteasy("predict", "--state", state, "--inputs", "x.safetensors", "-o", "y.safetensors").code == 0
    )
    assert torch.equal(safetensors.torch.load_file("y.safetensors")["output0"], expected)
    shown = spliteasy("predict", "--state", state, "--inputs", "x.npy").out.splitlines()
    assert shown[0].startswith(f"0  class {int(expected[0].argmax())} ")
    assert "300 rows" in shown[-1]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((4, 5), np.float32), "'x' is float32[5], the job takes float32[6]"),
        (np.zeros((4, 6)), "'x' is float64[6], the job takes float32[6]"),
        (np.zeros((0, 6), np.float32), "'x' is empty"),
    ],
)
def test_inputs_that_do_not_fit(
    array: np.ndarray[Any, Any], says: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    assert spliteasy("train", new_project(epochs=1).job_file, "--out", "out").code == 0
    np.save("x.npy", array)
    ran = spliteasy("predict", "--state", "out/devices/phone-1", "--inputs", "x.npy", "-o", "y.npy")
    assert ran.code == 2
    assert says in ran.error
    assert not Path("y.npy").exists()


def test_a_body_that_is_not_shared_stays_on_the_server(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=1)
    project.job_file.write_text(project.job_file.read_text().replace("share_body = true", ""))
    assert spliteasy("train", project.job_file, "--out", "out").code == 0
    ran = spliteasy("merge", "--state", "out/devices/phone-1", "-o", "m.safetensors")
    assert ran.code == 1
    assert "share_body = true" in ran.error
    assert not Path("m.safetensors").exists()


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    arguments = [
        "train",
        DIGITS,
        "--devices",
        "1",
        "--data",
        "examples.digits:device_data",
        "--secret",
        SECRET,
    ]
    with started([*arguments, "--out", "whole"], tmp_path) as whole:
        finish(whole)
    with started([*arguments, "--out", "halves"], tmp_path) as half:
        read_until(half, "  step 60/360")
        half.send_signal(signal.SIGINT)
        assert "--resume goes on from there" in finish(half)
    assert report_of(tmp_path / "halves")["devices"][0]["steps"] < 360
    with started([*arguments, "--out", "halves", "--resume"], tmp_path) as other_half:
        assert "resumed after step" in finish(other_half)
    merged = [
        weights(tmp_path / name / "devices/phone-1", tmp_path / f"{name}.safetensors")
        for name in ("whole", "halves")
    ]
    assert merged[0].keys() == merged[1].keys()
    assert all(torch.equal(merged[0][name], merged[1][name]) for name in merged[0])


def test_the_digits_are_learned(tmp_path: Path) -> None:
    arguments = ["train", DIGITS, "--devices", "4", "--workers", "2", "--out", "demo", "--secret", SECRET]
    with started(arguments, tmp_path) as training:
        finish(training)
    devices = report_of(tmp_path / "demo")["devices"]
    assert [entry["steps"] for entry in devices] == [360] * 4
    assert all(entry["test_accuracy"] >= 0.96 for entry in devices)
