"""The body that a version of a job was trained to, as the store has it: `submit --from` begins with it."""

from __future__ import annotations

from torch import Tensor

from server_worker.engine.body_trainer import BODY
from server_worker.replica.direct_body import DirectBody
from server_worker.rounds.turn import mean_name
from server_worker.store import Store
from spliteasy.errors import UserError
from spliteasy.fleet.record import RoundRecord
from spliteasy.graph.tensors import tensors_from_bytes
from spliteasy.job import Job
from spliteasy.training.segment_trainer import MODEL_PREFIX
from spliteasy_cli.fleets.first_round import fleet_name


async def trained_body(store: Store, version: str) -> dict[str, Tensor]:
    """Return weights and buffers of the body of `name@digest`, by the model's own names: the common one of a
    fleet, or that of the only device. Raises UserError where there is none, or more than one.
    """
    name, _, digest = version.partition("@")
    known = (await store.job_versions()).get(name, ())
    whole = [each for each in known if digest and each.startswith(digest)]
    stored = await store.get_job(name, whole[0]) if len(whole) == 1 else None
    if stored is None:
        raise UserError(
            f"there is no version {version} of a job",
            hint="see `spliteasy status`, and name it as NAME@DIGEST",
        )
    job = Job.from_parts(stored.manifest, stored.parts)
    state = await (_of_fleet if job.spec.fleet.has_rounds else _of_device)(store, job)
    return {
        key.removeprefix(MODEL_PREFIX): tensor
        for key, tensor in state.items()
        if key.startswith(MODEL_PREFIX)
    }


async def _of_fleet(store: Store, job: Job) -> dict[str, Tensor]:
    line = await store.fleets.newest_round(fleet_name(job))
    base = 0 if line is None else RoundRecord.from_json(line).base
    if base == 0:
        raise UserError(f"the devices of {job.name}@{job.digest[:12]} have not ended a round yet")
    try:
        mean = await store.fleets.read_weights(fleet_name(job), mean_name(base))
    except KeyError as error:
        raise UserError(
            f"the mean of round {base} of {job.name}@{job.digest[:12]} was not taken yet",
            hint="wait until a device goes on from it",
        ) from error
    tensors = tensors_from_bytes(mean)
    return {key.removeprefix(BODY): tensor for key, tensor in tensors.items() if key.startswith(BODY)}


async def _of_device(store: Store, job: Job) -> dict[str, Tensor]:
    metas = [
        meta
        for meta in await store.sessions()
        if meta.session.startswith(f"{job.name}.") and meta.job_digest == job.digest
    ]
    if len(metas) != 1:
        raise UserError(
            f"{len(metas)} devices have trained {job.name}@{job.digest[:12]}, each a model of its own",
            hint="begin with one that a fleet has trained: [fleet] mode in docs/fleet.md",
        )
    (meta,) = metas
    base = max(step for step in meta.snapshots if step <= meta.committed)
    memory = DirectBody(job, meta.session)
    memory.restore(await store.read_snapshot(meta.session, base), base)
    async for entry in store.read_log(meta.session, after=base, upto=meta.committed):
        memory.replay(entry)
    return memory.snapshot()
