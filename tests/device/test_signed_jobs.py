"""A device that takes only what its operator signed: no worker can make it load anything else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.agent import AgentResult
from device_agent.config import AgentConfig
from server_worker.store import StoredJob
from spliteasy.errors import JobError, PortableError
from spliteasy.job.package import job_digest, manifest_of
from spliteasy.job.signing import read_public_key, read_signer
from testing import Cluster, serving
from tests.device.served import toy_job
from tests.drawn import SECRET
from tests.job.test_signing import write_keys
from tests.simulation import toy


async def train(cluster: Cluster, state: Path, key: str | None) -> AgentResult:
    config = AgentConfig(
        job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=state, operator_key=key
    )
    return (await cluster.train(config))[0]


def with_another_seed(job: StoredJob) -> StoredJob:
    """Return a job, whole in itself, that a worker would hand out to make the device train otherwise."""
    spec = job.parts["spec.json"]
    parts = {**job.parts, "spec.json": spec.replace(b'"seed":', b'"seed":1')}
    assert parts != job.parts
    manifest = manifest_of("toy", parts)
    return replace(job, digest=job_digest(manifest), manifest=manifest, parts=parts)


def with_another_head(job: StoredJob) -> StoredJob:
    """The signed manifest, and other weights."""
    weights = bytearray(job.parts["head.safetensors"])
    weights[-1] ^= 1
    return replace(job, parts={**job.parts, "head.safetensors": bytes(weights)})


async def test_a_signed_job_is_trained_and_kept_with_its_signature(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    job, state, key = toy_job(), tmp_path / "state", read_public_key(public)
    async with serving(replace(job, signature=read_signer(private)(job.digest))) as cluster:
        assert (await train(cluster, state, key)).done
        await cluster.store.put_job(replace(job, signature="0" * 128))
        assert (await train(cluster, state, key)).done, "nothing is fetched that is in the folder"
        another = read_public_key(write_keys(tmp_path, "new.key")[1])
        with pytest.raises(JobError, match="not signed by the operator"):
            await train(cluster, state, another)


@pytest.mark.parametrize(
    ("altered", "error", "says"),
    [
        (lambda job: replace(job, signature=None), JobError, "takes signed ones only"),
        (with_another_seed, JobError, "not signed by the operator"),
        (with_another_head, PortableError, "head.safetensors .* is damaged"),
    ],
    ids=["unsigned", "another job", "another part"],
)
async def test_what_is_not_signed_is_not_loaded(
    altered: Callable[[StoredJob], StoredJob], error: type[Exception], says: str, tmp_path: Path
) -> None:
    private, public = write_keys(tmp_path)
    job = toy_job()
    job = replace(job, signature=read_signer(private)(job.digest))
    async with serving(altered(job)) as cluster:
        with pytest.raises(error, match=says):
            await train(cluster, tmp_path / "state", read_public_key(public))
    assert not (tmp_path / "state" / "job").exists()


async def test_a_folder_from_before_the_key_gets_the_signature_of_its_own_version(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    job, state, key = toy_job(), tmp_path / "state", read_public_key(public)
    async with serving(job) as cluster:
        assert (await train(cluster, state, None)).done
        with pytest.raises(JobError, match="takes signed ones only"):
            await train(cluster, state, key)
        await cluster.store.put_job(replace(job, signature=read_signer(private)(job.digest)))
        await cluster.store.put_job(with_another_seed(job))  # the newest version is not what the folder is of
        assert (await train(cluster, state, key)).done
