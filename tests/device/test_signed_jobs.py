"""A device that takes only what its operator signed: no worker can make it load anything else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker.transport.in_process import MemoryBroker, MemoryTransport
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from server_worker.store import StoredJob
from spliteasy.errors import JobError, PortableError
from spliteasy.job.package import job_digest, manifest_of
from spliteasy.job.signing import read_public_key, read_signer
from spliteasy.runtime.torch_thread import TorchThread
from tests.device.served import served, toy_job
from tests.drawn import SECRET
from tests.job.test_signing import write_keys
from tests.simulation import toy


async def train(broker: MemoryBroker, state: Path, key: str | None) -> AgentResult:
    async def connect() -> MemoryTransport:
        return broker.connect("phone-1")

    compute = TorchThread()
    config = AgentConfig(
        job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=state, operator_key=key
    )
    try:
        async with asyncio.timeout(60):
            return await Agent(config, connect=connect, compute=compute).run(asyncio.Event())
    finally:
        compute.close()


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
    async with served(replace(job, signature=read_signer(private)(job.digest))) as (broker, store):
        assert (await train(broker, state, key)).done
        await store.put_job(replace(job, signature="0" * 128))
        assert (await train(broker, state, key)).done, "nothing is fetched that is in the folder"
        another = read_public_key(write_keys(tmp_path, "new.key")[1])
        with pytest.raises(JobError, match="not signed by the operator"):
            await train(broker, state, another)


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
    async with served(altered(job)) as (broker, _):
        with pytest.raises(error, match=says):
            await train(broker, tmp_path / "state", read_public_key(public))
    assert not (tmp_path / "state" / "job").exists()


async def test_a_folder_from_before_the_key_gets_the_signature_of_its_own_version(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    job, state, key = toy_job(), tmp_path / "state", read_public_key(public)
    async with served(job) as (broker, store):
        assert (await train(broker, state, None)).done
        with pytest.raises(JobError, match="takes signed ones only"):
            await train(broker, state, key)
        await store.put_job(replace(job, signature=read_signer(private)(job.digest)))
        await store.put_job(with_another_seed(job))  # the newest version is not what the folder is of
        assert (await train(broker, state, key)).done
