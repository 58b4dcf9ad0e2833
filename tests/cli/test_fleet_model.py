"""What a fleet ends with: one model, which is merged, predicts, and begins a new version of the job."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from server_worker.store import StoreKeys, open_store
from spliteasy.graph.tensors import tensors_from_bytes
from spliteasy_cli.commands.train import STORE_FILE
from tests.cli.conftest import Project, Ran


def trained(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project], more: str
) -> tuple[Project, list[Path], str]:
    """Train three devices; the project, their state folders, and the store's URL."""
    project = new_project(epochs=2, more=more)
    out = project.folder / "out"
    ran = spliteasy("train", project.job_file, "--devices", 3, "--out", out)
    assert ran.code == 0, ran.out + ran.err
    states = [out / "devices" / f"phone-{number}" for number in (1, 2, 3)]
    return project, states, f"sqlite:///{out / STORE_FILE}"


@pytest.mark.parametrize("mode", ["splitfed", "shared", "relay"])
def test_the_common_model_is_merged_predicts_and_begins_a_new_version(
    mode: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project, states, store = trained(spliteasy, new_project, f'[fleet]\nmode = "{mode}"\nround_steps = 5')
    models, predictions = [], []
    np.save(project.folder / "inputs.npy", np.ones((3, 6), np.float32))
    for number, state in enumerate(states):
        file, told = project.folder / f"{number}.safetensors", project.folder / f"{number}.npy"
        assert spliteasy("merge", "--state", state, "--output", file).code == 0
        given = ("--inputs", project.folder / "inputs.npy", "--output", told)
        assert spliteasy("predict", "--state", state, *given).code == 0
        models.append(load(file.read_bytes()))
        predictions.append(np.load(told))
    for model, prediction in zip(models[1:], predictions[1:], strict=True):
        assert all(torch.equal(model[name], models[0][name]) for name in models[0])
        assert np.array_equal(prediction, predictions[0])
    digest, _ = submitted(store)
    ran = spliteasy("submit", project.job_file, "--store", store, "--from", f"tiny@{digest[:12]}")
    assert ran.code == 0, ran.err
    newer, body = submitted(store)
    assert newer != digest
    assert body
    assert all(torch.equal(tensor, models[0][name]) for name, tensor in body.items())


def submitted(store: str) -> tuple[str, dict[str, Tensor]]:
    """The digest of the version that was submitted last, and the body that it begins with."""

    async def read() -> tuple[str, dict[str, Tensor]]:
        opened = await open_store(store, StoreKeys())
        try:
            job = await opened.get_job("tiny")
            assert job is not None
            return job.digest, tensors_from_bytes(job.parts["body.safetensors"])
        finally:
            await opened.close()

    return asyncio.run(read())


def test_a_version_that_there_is_not_or_that_is_several_models_begins_nothing(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project, _, store = trained(spliteasy, new_project, "")
    digest, _ = submitted(store)
    for version, told in (
        ("tiny@0000", "there is no version tiny@0000"),
        ("tiny", "there is no version tiny"),
        (f"tiny@{digest}", "3 devices have trained"),
    ):
        ran = spliteasy("submit", project.job_file, "--store", store, "--from", version)
        assert ran.code == 2
        assert told in ran.error
