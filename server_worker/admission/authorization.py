"""The jobs that a device may train: the operator's list in the store, and what a worker does when
it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from server_worker.store import Store


def may_train(allowed: Sequence[str] | None, job: str, digest: str | None = None) -> bool:
    """Return whether a device limited to `allowed` (`name` or `name@digest`; None: not limited) may train the
    job.

    `digest` None: whether it may train any version of it.
    """
    if allowed is None or job in allowed:
        return True
    if digest is None:
        return any(each.startswith(f"{job}@") for each in allowed)
    return f"{job}@{digest}" in allowed


async def forbidden(store: Store, sessions: Mapping[str, str]) -> list[str]:
    """Return those of `sessions` (name to job digest) that their device may not train any more."""
    devices = sorted({name.partition(".")[2] for name in sessions})
    allowed = await store.allowed(devices) if devices else {}
    return [
        name
        for name, digest in sessions.items()
        for job, _, device in [name.partition(".")]
        if not may_train(allowed.get(device), job, digest)
    ]
