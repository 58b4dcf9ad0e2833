"""Mistakes that a person can make without any server: one line says what and what to do, exit code not 0."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Project, Ran

AGENT = ("agent", "--job", "tiny", "--device", "phone-1", "--data", "m:f")


@pytest.mark.parametrize(
    "arguments", [("status",), AGENT, ("worker",), ("session", "forget", "a.b", "--yes")]
)
def test_no_server_named(arguments: tuple[str, ...], spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy(*arguments)
    assert ran.code == 2
    assert "make up" in ran.error
    assert "SPLITEASY_" in ran.error


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--max-uplink", "20", "--max-uplink '20' has no unit"),
        ("--max-uplink", "0mbit", "must be above 0"),
        ("--metered", "much", "--metered 'much' is not a number and a unit"),
        ("--metered", "0mb", "--metered '0mb' must be above 0"),
    ],
)
def test_a_limit_that_is_none(option: str, value: str, told: str, spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy(*AGENT, "--broker", "amqp://127.0.0.1:1/", option, value)
    assert ran.code == 2
    assert told in ran.error


def test_a_damaged_stack_file(spliteasy: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / ".local").mkdir()
    (tmp_path / ".local/stack.json").write_text("{")
    ran = spliteasy("status")
    assert ran.code == 2
    assert "make down && make up" in ran.error


def test_a_broker_that_is_not_there(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy(*AGENT, "--broker", "amqp://u:hunter2@127.0.0.1:1/")
    assert ran.code == 1
    at_once, last = ran.err.splitlines()
    assert "127.0.0.1:1 can't be reached: connection refused; trying again" in at_once
    assert "127.0.0.1:1 can't be reached" in last
    assert "hunter2" not in ran.err
    assert "Traceback" not in ran.err


def test_a_store_that_is_not_there(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("status", "--broker", "amqp://127.0.0.1:1/", "--store", "redis://:hunter2@127.0.0.1:1/0")
    assert ran.code == 1
    assert "127.0.0.1:1 can't be reached" in ran.error
    assert "hunter2" not in ran.err


@pytest.mark.parametrize(
    ("option", "url", "says"),
    [
        ("--broker", "http://x", "@host:port/vhost"),
        ("--store", "ftp://x", "redis://, rediss://, redis+sentinel:// or sqlite:///path"),
    ],
)
def test_a_url_that_can_not_be(
    option: str, url: str, says: str, spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    others = {"--broker": "amqp://127.0.0.1:1/", "--store": f"sqlite:///{tmp_path}/s", option: url}
    ran = spliteasy("status", *(word for pair in others.items() for word in pair))
    assert ran.code != 0
    assert says in ran.error


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch_size", "batch_sise", "batch_sise: unknown key, did you mean batch_size?"),
        ('"stem"', '"sten"', "did you mean 'stem'"),
        ("seed = 3", "seed = 3\nprecision = 'fp16'", "'fp16' is not built yet"),
        (":build", ":biuld", "has no biuld (did you mean build"),
        ("seed = 3", "seed = ", "not TOML"),
    ],
)
def test_a_job_file_with_a_slip(
    old: str, new: str, says: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project()
    project.job_file.write_text(project.job_file.read_text().replace(old, new))
    store = project.folder / "store.sqlite"
    ran = spliteasy("submit", project.job_file, "--store", f"sqlite:///{store}")
    assert ran.code == 2
    assert says in ran.error
    assert not store.exists()


def test_no_job_file(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("train", "nowhere.toml")
    assert ran.code == 2
    assert "nowhere.toml: no such job file" in ran.error
    assert os.listdir() == []


@pytest.mark.parametrize("name", ["Phone 1", "a.b", "", "x" * 64])
def test_names_that_can_not_be(name: str, spliteasy: Callable[..., Ran]) -> None:
    for arguments in (
        ("agent", "--job", name, "--device", "phone-1", "--data", "m:f"),
        ("agent", "--job", "tiny", "--device", name, "--data", "m:f"),
        ("worker", "--name", name, "--broker", "amqp://127.0.0.1:1/"),
    ):
        ran = spliteasy(*arguments)
        assert ran.code == 2
        assert "1 to 63 of the characters a-z, 0-9 and -" in ran.error


def test_data_that_is_not_there(spliteasy: Callable[..., Ran], new_project: Callable[..., Project]) -> None:
    project = new_project()
    ran = spliteasy("train", project.job_file, "--out", "out", "--data", f"{project.module}:nothing")
    assert ran.code == 2
    assert "has no nothing" in ran.error


def test_no_data_beside_the_model(spliteasy: Callable[..., Ran], new_project: Callable[..., Project]) -> None:
    project = new_project()
    source = project.folder / f"{project.module}.py"
    source.write_text(source.read_text().replace("def device_data", "def other_data"))
    ran = spliteasy("train", project.job_file, "--out", "out")
    assert ran.code == 2
    assert "--data module:function" in ran.error
    assert not Path("out").exists()


def test_labels_out_of_range(spliteasy: Callable[..., Ran], new_project: Callable[..., Project]) -> None:
    project = new_project()
    source = project.folder / f"{project.module}.py"
    source.write_text(source.read_text().replace("y = (x", "y = 5 + (x"))
    ran = spliteasy("train", project.job_file, "--out", "out")
    assert ran.code == 2
    assert "labels are 0 to 2" in ran.error


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("wide_data", "'x' is float32[7], expected float32[6]"),
        ("double_data", "'x' is float64[6], expected float32[6]"),
    ],
)
def test_data_that_does_not_fit(
    data: str, says: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project()
    ran = spliteasy("train", project.job_file, "--out", "out", "--data", f"{project.module}:{data}")
    assert ran.code == 2
    assert says in ran.error


def test_data_that_changed_under_an_old_state(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=1)
    assert spliteasy("train", project.job_file, "--out", "out").code == 0
    changed = ("--data", f"{project.module}:changed_data")
    ran = spliteasy("train", project.job_file, "--out", "out", "--resume", *changed)
    assert ran.code == 2
    assert "the data set of device phone-1 is not the one" in ran.error


def test_the_state_of_another_version_of_the_job(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(epochs=1)
    assert spliteasy("train", project.job_file, "--out", "out").code == 0
    project.job_file.write_text(project.job_file.read_text().replace("seed = 3", "seed = 4"))
    ran = spliteasy("train", project.job_file, "--out", "out", "--resume")
    assert ran.code == 2
    assert "belongs to job tiny@" in ran.error


def test_nothing_to_resume(spliteasy: Callable[..., Ran], new_project: Callable[..., Project]) -> None:
    ran = spliteasy("train", new_project().job_file, "--out", "out", "--resume")
    assert ran.code == 2
    assert "out holds no training to resume" in ran.error


def test_a_folder_of_somebody_else_is_not_deleted(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    mine = Path("out/devices/photos")
    mine.mkdir(parents=True)
    ran = spliteasy("train", new_project().job_file, "--out", "out")
    assert ran.code == 2
    assert "name another folder with --out" in ran.error
    assert mine.is_dir()


def test_no_trained_state(spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("merge", "--state", "nowhere")
    assert ran.code == 2
    assert "there is no state folder nowhere" in ran.error
    assert not Path("nowhere").exists()


def test_more_steps_than_the_job_has(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    ran = spliteasy("parity", new_project(epochs=1).job_file, "--steps", "6")
    assert ran.code == 2
    assert "only 5 steps" in ran.error


def test_parity_on_half_a_stack(spliteasy: Callable[..., Ran], new_project: Callable[..., Project]) -> None:
    ran = spliteasy("parity", new_project().job_file, "--broker", "amqp://127.0.0.1:1/")
    assert ran.code == 2
    assert "both --broker and --store" in ran.error


def test_parity_on_data_that_differs_at_each_call(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project()
    source = project.folder / f"{project.module}.py"
    source.write_text(source.read_text().replace("generator=generator", ""))
    ran = spliteasy("parity", project.job_file, "--steps", "2")
    assert ran.code == 2
    assert "other data at each call" in ran.error


def test_batch_norm_in_parts_of_one_sample_is_refused(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project], tmp_path: Path
) -> None:
    for micro_batches, refused in ((8, True), (4, False)):
        project = new_project(top=f"micro_batches = {micro_batches}")
        ran = spliteasy("submit", project.job_file, "--store", f"sqlite:///{tmp_path}/store.sqlite")
        assert ran.code == (2 if refused else 0), ran.err
        assert ("gives the model 1 sample at a time" in ran.err) is refused, ran.err
        assert ("micro_batches = 4 or fewer" in ran.err) is refused
