"""A device's secret in tests: the same each time."""

from __future__ import annotations

from device_agent.training.ends import draw_ends, job_key, with_ends
from spliteasy.job import Job
from spliteasy.runtime.randomness import Key

SECRET = bytes(range(32))


def key_of(device: str = "phone-1", job: str = "0" * 64, secret: bytes = SECRET) -> Key:
    """The key of a device for the job of that digest."""
    return job_key(secret, device=device, job=job)


def drawn(job: Job, key: Key | None = None) -> Job:
    """The job with head and tail as a device begins them."""
    return with_ends(job, draw_ends(job, key or key_of(job=job.digest)))
