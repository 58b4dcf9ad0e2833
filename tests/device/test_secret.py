"""A device's secret and the weights that it draws: made once, kept, and refused where they can be guessed."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from device_agent.state_folder import StateFolder
from device_agent.training.ends import draw_ends, initial_ends, public_weights
from spliteasy.errors import PublicEnds, StateError
from spliteasy.job import Job
from spliteasy.job.spec import PrivacySpec
from spliteasy.privacy.ends import Ends
from tests.drawn import SECRET, key_of
from tests.simulation import toy


def job_with(**privacy: object) -> Job:
    spec = toy.job(toy.Variant()).spec
    return Job.create(spec.model_copy(update={"privacy": PrivacySpec.model_validate(privacy)}))


def test_the_secret_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "a") as state:
        secret = state.secret()
        assert len(secret) == 32
        assert state.secret() == secret
        assert stat.S_IMODE((tmp_path / "a" / "secret").stat().st_mode) == 0o600
        with pytest.raises(StateError, match="has another secret"):
            state.secret(SECRET)
    with StateFolder(tmp_path / "a") as state:
        assert state.secret() == secret
    with StateFolder(tmp_path / "b") as state:
        assert state.secret() != secret


def test_a_training_whose_secret_or_ends_have_gone_does_not_go_on(tmp_path: Path) -> None:
    with StateFolder(tmp_path) as state:
        state.secret(SECRET)
        state.save_ends({"head/a": torch.ones(2)})
        state.bind(job="0" * 64, device="phone-1", fingerprint="f")
        state.save_checkpoint(0, {"a": torch.ones(2)})
    (tmp_path / "ends").write_bytes(b"short")
    with StateFolder(tmp_path) as state, pytest.raises(StateError, match="weights are drawn once"):
        _ = state.ends
    (tmp_path / "secret").unlink()
    with StateFolder(tmp_path) as state, pytest.raises(StateError, match="an older version began"):
        state.secret()


def test_ends_are_drawn_once_and_kept(tmp_path: Path) -> None:
    job = toy.job(toy.Variant())
    with StateFolder(tmp_path) as state:
        first = initial_ends(job, state, key_of(job=job.digest), refuse_public=True)
        again = initial_ends(job, state, key_of(secret=bytes(32)), refuse_public=True)
    assert {role: table.keys() for role, table in first.items()} == {
        role: job.ends.of(role).keys() for role in ("head", "tail")
    }
    for role, table in first.items():
        for name, tensor in table.items():
            assert torch.equal(tensor, again[role][name])


def test_devices_and_versions_of_a_job_have_other_ends() -> None:
    job = toy.job(toy.Variant())
    keys = key_of(job=job.digest), key_of("phone-2", job=job.digest), key_of(job="1" * 64)
    heads = [draw_ends(job, key)["head"]["0.weight"] for key in keys]
    assert not any(torch.equal(heads[0], other) for other in heads[1:])


def test_public_ends_are_in_the_job_and_may_be_refused(tmp_path: Path) -> None:
    job = job_with(ends="public")
    assert job.ends.drawn == {}
    assert "0.weight" in public_weights(job)
    with StateFolder(tmp_path) as state:
        with pytest.raises(PublicEnds, match=r"0\.weight.* are in job toy@"):
            initial_ends(job, state, key_of(), refuse_public=True)
        assert initial_ends(job, state, key_of(), refuse_public=False) == {}


def test_a_job_that_hides_that_its_weights_are_public_is_refused() -> None:
    lying = replace(job_with(ends="public"), ends=Ends())
    with pytest.raises(PublicEnds, match="nearly the same initial values on every device"):
        draw_ends(lying, key_of())


def test_perturbed_weights_are_near_the_jobs_and_nobody_elses() -> None:
    public = job_with(ends="public")
    job = replace(
        public, spec=public.spec.model_copy(update={"privacy": PrivacySpec(ends="perturb", perturb=0.2)})
    )
    one, two = (draw_ends(job, key_of(device))["head"]["0.weight"] for device in ("phone-1", "phone-2"))
    given = public.head.tensors()["0.weight"].detach()
    assert one.stride() == given.stride()
    assert not one.requires_grad
    moved = one / given - 1
    assert not torch.equal(one, two)
    assert 0.1 < float(moved.std()) < 0.3
    assert "0.weight" not in public_weights(job)
