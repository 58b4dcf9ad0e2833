"""The initial weights of a device's head and tail: drawn once from its secret, by the job's law."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import structlog
from torch import Tensor

from device_agent.state_folder import StateFolder
from spliteasy.errors import PublicEnds, StateError
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.privacy.ends import Drawn, draw, perturb
from spliteasy.privacy.entropy import check_entropy, weights_of
from spliteasy.runtime.randomness import Key

log = structlog.get_logger(__name__)


def job_key(secret: bytes, *, device: str, job: str) -> Key:
    """Return the key of a device for the job version of that digest: all secrets of a training come from it.

    The device's name counts, so that two devices that were copied from one image differ.
    """
    return Key(secret).at("device", device, "job", job)


def ends_key(config_key: bytes | None, own: Key, job: Job) -> tuple[Key, str | None]:
    """Return the key that the initial ends are drawn from, and its name where devices share it.

    Ends that are averaged must begin alike: they come from the fleet's key. Raises StateError where there is
    none. All others are the device's own.
    """
    drawn = any(job.ends.drawn.values()) or job.spec.privacy.ends == "perturb"
    if not job.spec.fleet.ends_leave or not (drawn or job.spec.fleet.seals):
        return own, None
    if config_key is None:
        raise StateError(
            f"job {job} averages the devices' ends, which have to begin alike, and there is no fleet key",
            hint="make one for all devices with `spliteasy fleet-key FILE`, and give it: --fleet-key FILE",
        )
    key = Key(config_key).at("fleet", "job", job.digest)
    return key, key.at("name").stream(8).hex()


def label_key(secret: bytes) -> Key:
    """The key of the answers that a device gives for its labels: no job's and no name's, since each further
    one would have further answers for the same labels.
    """
    return Key(secret).at("labels")


def initial_ends(
    job: Job, state: StateFolder, key: Key, *, refuse_public: bool, handing_over: bool = False
) -> Drawn:
    """The device's own initial tensors: drawn at its first start and kept, since another machine or another
    version of numpy may round otherwise. `handing_over`: those of a version that the folder is not of yet.

    Raises PublicEnds where the job's law leaves nothing to guess, or `refuse_public` and some are public.
    """
    public = public_weights(job)
    if public:
        names = ", ".join(public[:5]) + (" and more" if len(public) > 5 else "")
        if refuse_public:
            raise PublicEnds(
                f"initial weights of {names} are in job {job}, where the worker can read them",
                hint='submit it with [privacy] ends = "secret" or "perturb" (docs/privacy.md)',
            )
        log.warning(
            "initial weights are in the job: the worker can compute labels and inputs from what it sees",
            job=str(job),
            weights=names,
        )
    if handing_over:
        return draw_ends(job, key)
    kept = state.ends
    if kept is not None:
        return _by_role(kept)
    ends = draw_ends(job, key)
    state.save_ends(as_paths(ends))
    return ends


def as_paths(ends: Drawn) -> dict[str, Tensor]:
    """Return the ends as a state folder keeps them: `role/name`."""
    return {f"{role}/{name}": x for role, table in ends.items() for name, x in table.items()}


def draw_ends(job: Job, key: Key) -> Drawn:
    """The initial tensors of head and tail that differ from the job's. Raises PublicEnds, PortableError."""
    weights = [w for role, s in _segments(job) for w in weights_of(role, s.program.document.tensors)]
    check_entropy(job.ends, weights)
    ends = draw(job.ends, key.at("ends"))
    if job.spec.privacy.ends == "perturb":
        for role, name, value in _perturbed(job):
            moved = perturb(value, job.spec.privacy.perturb, key.at("perturb", name))
            ends.setdefault(role, {})[name] = moved
    return ends


def with_ends(job: Job, ends: Drawn) -> Job:
    """The job whose head and tail begin with these tensors."""
    tail = job.tail and job.tail.spawn(ends.get("tail"))
    return replace(job, head=job.head.spawn(ends.get("head")), tail=tail)


def public_weights(job: Job) -> list[str]:
    """The weights of head and tail that begin as they are in the job."""
    moved = set()
    if job.spec.privacy.ends == "perturb":
        moved = {(role, name) for role, name, value in _perturbed(job) if bool(value.any())}
    return [
        name for role, _ in _segments(job) for name in job.ends.public_of(role) if (role, name) not in moved
    ]


def _perturbed(job: Job) -> Iterator[tuple[str, str, Tensor]]:
    """Role, name and the job's value of each public weight that trains."""
    for role, segment in _segments(job):
        values = segment.tensors()
        for spec in segment.program.document.tensors:
            if spec.requires_grad and spec.name in job.ends.public_of(role):
                yield role, spec.name, values[spec.name]


def _segments(job: Job) -> list[tuple[str, Segment]]:
    return [("head", job.head)] if job.tail is None else [("head", job.head), ("tail", job.tail)]


def _by_role(tensors: Mapping[str, Tensor]) -> Drawn:
    """Return by role what a state folder keeps as `role/name`."""
    ends: Drawn = {}
    for path, tensor in tensors.items():
        role, _, name = path.partition("/")
        ends.setdefault(role, {})[name] = tensor
    return ends
