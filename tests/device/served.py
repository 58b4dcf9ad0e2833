"""The toy job as a worker gets it."""

from __future__ import annotations

from server_worker.store import StoredJob
from tests.simulation import toy


def toy_job(variant: toy.Variant | None = None) -> StoredJob:
    """Return the toy job as it is without a signature."""
    job = toy.job(variant or toy.Variant())
    return StoredJob(name="toy", digest=job.digest, manifest=job.manifest, parts=job.parts)
