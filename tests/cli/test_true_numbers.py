"""A number that was not measured, or is none, is called so, and blamed on what it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import Project, Ran

DATA = """

def spoiled(train_rows=(), test_rows=(), value=float("nan"), samples=40):
    def data(device):
        train, test = device_data(device)
        train = TensorDataset(*(tensor[:samples] for tensor in train.tensors))
        for part, rows in ((train, train_rows), (test, test_rows)):
            for row in rows:
                part.tensors[0][row, 2] = value
        return train, test
    return data


nan_train = spoiled(train_rows=(23,))
infinite_train = spoiled(train_rows=(23,), value=float("-inf"))
nan_test = spoiled(test_rows=(5,))
one_too_many = spoiled(samples=33)


def measured(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def halves(device):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 6, generator=generator), torch.rand(40, 3, generator=generator)
    return TensorDataset(x, y / y.sum(1, keepdim=True)), TensorDataset(x[:8], y[:8])


def shares_example():
    return torch.zeros(4, 6), torch.full((4, 3), 1 / 3)
"""


@pytest.fixture
def project(new_project: Callable[..., Project]) -> Callable[..., Project]:
    """A project with these data functions."""

    def make(**settings: Any) -> Project:
        made = new_project(**{"epochs": 2, **settings})
        with (made.folder / f"{made.module}.py").open("a") as file:
            file.write(DATA)
        return made

    return make


def trained(spliteasy: Callable[..., Ran], project: Project, data: str) -> Ran:
    return spliteasy("train", project.job_file, "--data", f"{project.module}:{data}", "--out", "out")


ONE_CUT = {"cuts": '["stem"]', "top": "share_labels = true"}


@pytest.mark.parametrize("settings", [{}, ONE_CUT], ids=["two cuts", "one cut"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("nan_train", "the training data of phone-1, sample 23: input 'x' is NaN at [2]"),
        ("infinite_train", "the training data of phone-1, sample 23: input 'x' is infinite at [2]"),
        ("nan_test", "the test data of phone-1, sample 5: input 'x' is NaN at [2]"),
        ("one_too_many", "drop_last = true"),
    ],
)
def test_the_data_is_blamed_by_sample(
    settings: dict[str, str],
    data: str,
    says: str,
    spliteasy: Callable[..., Ran],
    project: Callable[..., Project],
) -> None:
    ran = trained(spliteasy, project(**settings), data)
    assert ran.code == 2
    assert says in ran.error


@pytest.mark.parametrize("settings", [{}, ONE_CUT], ids=["two cuts", "one cut"])
def test_a_step_that_passes_says_why(
    settings: dict[str, str], spliteasy: Callable[..., Ran], project: Callable[..., Project]
) -> None:
    skipping = project(**settings, more='[durability]\non_non_finite = "skip"')
    ran = trained(spliteasy, skipping, "nan_train")
    assert ran.code == 0, ran.err
    history = [json.loads(line) for line in Path("out/history/phone-1.jsonl").read_text().splitlines()]
    passed = [record["text"] for record in history if "skipped" in record.get("text", "")]
    assert len(passed) == 2
    assert all("sample 23: input 'x' is NaN" in text for text in passed)
    assert all(np.isfinite(record["loss"]) for record in history if "loss" in record)


def test_running_statistics_that_are_no_numbers_never_count(
    spliteasy: Callable[..., Ran], project: Callable[..., Project]
) -> None:
    """A head that divides by the batch's variance: constant rows make its buffers NaN, not its outputs."""
    module = project(epochs=1)
    text = (module.folder / f"{module.module}.py").read_text()
    text = text.replace(
        "self.stem = nn.Sequential(nn.Linear(6, 12), nn.ReLU())", "self.stem = Counting()"
    ).replace(
        "class Net(",
        """class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 12)
        self.register_buffer("ratio", torch.ones(()))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.ratio.copy_(x[:, 0].sum() / x[:, 0].abs().sum())
        return self.inner(x)


class Net(""",
    )
    text += """

def still(device):
    train, test = device_data(device)
    train.tensors[0][:, 0] = 0
    return train, test
"""
    (module.folder / f"{module.module}.py").write_text(text)
    ran = trained(spliteasy, module, "still")
    assert ran.code == 1
    assert "the buffer stem.ratio (running statistics) is NaN or infinite in step 1" in ran.error


@pytest.mark.parametrize(
    ("loss", "measured"), [('function = "{module}:measured"', True), ('function = "{module}:squared"', False)]
)
def test_an_accuracy_is_measured_or_said_not_to_be(
    loss: str, measured: bool, spliteasy: Callable[..., Ran], project: Callable[..., Project]
) -> None:
    made = project()
    job = made.job_file.read_text().replace('name = "cross_entropy"', loss.format(module=made.module))
    made.job_file.write_text(job)
    ran = trained(spliteasy, made, "device_data")
    assert ran.code == 0, ran.err
    (device,) = json.loads(Path("out/report.json").read_text())["devices"]
    assert ("not measured" in ran.out) is not measured
    assert (device["test_accuracy"] is not None) is measured


def test_class_probabilities_are_judged_by_the_likeliest_class(
    spliteasy: Callable[..., Ran], project: Callable[..., Project]
) -> None:
    made = project()
    made.job_file.write_text(made.job_file.read_text().replace(":example", ":shares_example"))
    ran = trained(spliteasy, made, "halves")
    assert ran.code == 0, ran.err
    (device,) = json.loads(Path("out/report.json").read_text())["devices"]
    assert device["test_accuracy"] * 8 == pytest.approx(round(device["test_accuracy"] * 8))


def test_a_prediction_of_nan_is_an_error_that_names_the_row(
    spliteasy: Callable[..., Ran], project: Callable[..., Project]
) -> None:
    assert trained(spliteasy, project(), "device_data").code == 0
    inputs = np.zeros((5, 6), np.float32)
    inputs[3, 1] = np.nan
    np.save("x.npy", inputs)
    ran = spliteasy("predict", "--state", "out/devices/phone-1", "--inputs", "x.npy")
    assert ran.code == 2
    assert "1 of 5 predictions are NaN, the first in row 3: input 'x' is not finite there" in ran.error
    assert ran.out.splitlines()[3] == "3  not finite"


@pytest.mark.parametrize("settings", ["batch_size = 1", "batch_size = 4\nmicro_batches = 3"])
def test_parts_of_one_sample_are_refused_where_batch_norm_sees_them(
    settings: str, spliteasy: Callable[..., Ran], project: Callable[..., Project]
) -> None:
    made = project()
    made.job_file.write_text(made.job_file.read_text().replace("batch_size = 8", settings))
    ran = trained(spliteasy, made, "device_data")
    assert ran.code == 2
    assert "1 sample at a time" in ran.error
