"""A fleet whose devices are all in this process: what it has to be, and how its first round begins."""

from __future__ import annotations

from collections.abc import Sequence

from device_agent.config import AgentConfig
from device_agent.training.ends import ends_key
from server_worker.rounds.decision import beginning
from server_worker.store import Store
from spliteasy.errors import UserError
from spliteasy.fleet.record import Member
from spliteasy.job import Job
from spliteasy.job.spec import LEAST_SEALED, FleetSpec
from spliteasy.runtime.randomness import KEY_BYTES, Key


def fleet_name(job: Job) -> str:
    """Return how the store names the fleet of a job's version."""
    return f"{job.name}@{job.digest}"


def check_size(fleet: FleetSpec, devices: int) -> None:
    """Refuse a fleet that is too small for its own settings. Raises UserError."""
    if not fleet.has_rounds:
        return
    if fleet.seals_sums and devices < LEAST_SEALED:
        raise UserError(
            f"a sealed mean takes {LEAST_SEALED} devices, and there are {devices}",
            hint=f'--devices {LEAST_SEALED}, or share_ends = true with fleet.aggregate = "plain"',
        )
    if isinstance(fleet.quorum, int) and fleet.quorum > devices:
        raise UserError(
            f"fleet.quorum = {fleet.quorum} can never be reached by {devices} devices",
            hint=f"--devices {fleet.quorum}, or a smaller quorum",
        )


async def begin_rounds(store: Store, job: Job, configs: Sequence[AgentConfig]) -> None:
    """Let the first round be of all these devices, or of those that are drawn from them, unless it has begun.

    Devices of other processes come one by one, and the first round is of those that came before it began.
    """
    spec = job.spec
    if not spec.fleet.has_rounds:
        return
    _, key = ends_key(configs[0].fleet_key, Key(bytes(KEY_BYTES)), job)
    now = await store.now()
    members = {config.device: Member(seen=now, since=now, done=False) for config in configs}
    record = beginning(members, spec.fleet, seed=spec.seed, now=now, fleet_key=key)
    await store.fleets.append_round(fleet_name(job), record.to_json(), number=0, previous=None)
