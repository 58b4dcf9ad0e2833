"""`spliteasy submit`: export a job's model once and store it under name@digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.runtime.readable import size
from spliteasy_cli.commands.keys import SignOption, StoreKeyOption, signing_key, store_keys
from spliteasy_cli.options.threads import DEFAULT_THREADS, ThreadsOption, torch_threads
from spliteasy_cli.options.verdicts import DEFAULT_VERDICTS, VerdictsOption
from spliteasy_cli.support.endpoints import StoreOption, find_url, store_at
from spliteasy_cli.support.log_setup import set_up_logging

if TYPE_CHECKING:
    from server_worker.store import Store, StoreKeys
    from spliteasy.job import Job
    from spliteasy.job.spec import LimitsSpec

NAMED = 8
"""Public weights that are named one by one."""

JobFile = Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.", show_default=False)]


def submit(
    context: typer.Context,
    job_file: JobFile,
    sign: SignOption = None,
    begin_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="NAME@DIGEST",
            help="Begin with the body that this version of a job was trained to, as the store has it.",
            show_default=False,
        ),
    ] = None,
    store: StoreOption = None,
    store_key: StoreKeyOption = None,
    verdicts: VerdictsOption = DEFAULT_VERDICTS,
    threads: ThreadsOption = DEFAULT_THREADS,
) -> None:
    """Export the job's model, cut it, and store spec, segments and initial weights as name@digest.

    With --from the body begins as it was trained: the common one of a fleet, or that of the only device.
    Heads and tails belong to the devices, which draw new ones.

    The only command that imports your model's code. Submitting a change makes a new version; sessions
    keep theirs. The same again with --sign signs a version that is there.
    """
    import asyncio

    set_up_logging(context, "warning")
    from spliteasy.job import load_job_file
    from spliteasy_cli.history.verdicts import limits_of, line_of, read_verdicts

    kept = read_verdicts(verdicts)
    key_file = signing_key(
        sign, find_url("store", store)
    )  # what is missing shows before the model is exported
    sign_job = _signer(key_file)
    limits = limits_of(load_job_file(job_file).privacy.limits)
    with torch_threads(threads):
        job = create_job(job_file)
        if begin_from is not None:
            job = asyncio.run(_begun(job, begin_from, store, store_keys(store_key, find_url("store", store))))
        asyncio.run(_submit(job, store, sign_job(job.digest) if sign_job else None))
    parts = sum(len(part) for part in job.parts.values())
    cuts = " | ".join(job.spec.model.cuts)
    typer.echo(f"submitted {job.name}@{job.digest} ({len(job.parts)} parts, {size(parts)}; cut: {cuts})")
    if key_file is not None:
        typer.echo(f"signed with {key_file}")
    typer.echo(f"gate: {line_of(kept, job.digest, limits)}", err=True)
    key = " --fleet-key FILE" if job.spec.fleet.ends_leave else ""
    typer.echo(
        f"next: spliteasy agent --job {job.name} --device phone-1 --data MODULE:FUNCTION{key}", err=True
    )
    if key:
        typer.echo("`spliteasy fleet-key FILE` makes the key that all devices of this job share", err=True)


def create_job(job_file: Path) -> Job:
    """Read the job file, build and cut its model. Raises JobError."""
    from spliteasy.job import Job, load_job_file
    from spliteasy.runtime.user_code import project_root

    spec = load_job_file(job_file)
    job = Job.create(spec, project_root(job_file))
    _warn_of_public_ends(job)
    _warn_of_labels(job)
    _warn_of_limits(job, spec.privacy.limits)
    _warn_of_relay(job)
    _warn_of_browsers(job)
    _say_guarantee(job)
    return job


def _warn_of_public_ends(job: Job) -> None:
    """Name the weights that begin as the package says, and say what a worker makes of that."""
    import structlog

    from device_agent.training.ends import public_weights

    public = public_weights(job)
    if not public:
        return
    reasons = dict(job.ends.named_public())
    named = [f"{name} ({reasons[name]})" for name in public[:NAMED]]
    if len(public) > NAMED:
        named.append(f"and {len(public) - NAMED} more")
    structlog.get_logger(__name__).warning(
        "initial weights of head and tail are public: anybody who has the job can follow their training from "
        "what crosses the cuts, and compute labels and inputs",
        weights="; ".join(named),
        hint='[privacy] ends = "perturb" moves them on the device; docs/privacy.md says how far that helps',
    )


def _warn_of_labels(job: Job) -> None:
    """Say where the gradients that cross are the labels under another name."""
    import structlog

    from spliteasy.privacy.plain_labels import HINT, plain_labels

    why = plain_labels(job)
    if why is not None:
        structlog.get_logger(__name__).warning(why, hint=HINT)


def _warn_of_limits(job: Job, limits: LimitsSpec) -> None:
    """The limits are the job file's: a package has none."""
    import structlog

    from spliteasy.privacy.advice import advice

    for each in advice(job, limits):
        structlog.get_logger(__name__).warning(each.why, hint=each.hint)


def _warn_of_relay(job: Job) -> None:
    """Say where the turns of devices with unlike data would make the model forget."""
    import structlog

    from spliteasy.fleet.parts import norm_layers

    segments = [each for each in (job.head, job.body, job.tail) if each is not None]
    norms = sorted({layer for segment in segments for layer in norm_layers(segment.state_dict())})
    if job.spec.fleet.hands_over and job.spec.fleet.norm == "average" and norms:
        structlog.get_logger(__name__).warning(
            'mode = "relay" and batch norm: the running statistics become those of the device whose turn it '
            "was, so that the model forgets the others' data where devices have unlike data",
            layers="; ".join(norms[:NAMED]),
            hint='use group norm in the model, or mode = "splitfed" (docs/fleet.md has figures)',
        )


def _warn_of_browsers(job: Job) -> None:
    """Name what the job needs and a browser can't compute."""
    import structlog

    from spliteasy_cli.support.browser import browser_gaps, said

    missing = browser_gaps(job)
    if missing:
        structlog.get_logger(__name__).warning(
            said(missing), hint="Python agents can; docs/browser-engine.md says what a browser computes"
        )


def _say_guarantee(job: Job) -> None:
    """Print what label_dp promises, and against whom."""
    from spliteasy.privacy.defences.label_dp import classes_to_answer, guarantee

    epsilon = job.spec.privacy.label_dp
    if epsilon is not None:
        typer.echo(guarantee(epsilon, classes_to_answer(job.spec, job.signature)), err=True)
    if (dp := job.spec.privacy.dp) is not None:
        from spliteasy.privacy.defences.dp import ADVERSARY, NOT_AGAINST

        asked = f"ε = {dp.epsilon:g}" if dp.epsilon else f"a noise multiplier of {dp.noise_multiplier:g}"
        typer.echo(
            f"dp: DP-SGD with {asked} at δ = {dp.delta:g}, for each sample of a device, against {ADVERSARY}; "
            f"{NOT_AGAINST}. Each agent says its own ε",
            err=True,
        )


async def store_job(store: Store, job: Job, signature: str | None = None) -> None:
    """Store the package; where that version is there, only its signature changes."""
    from server_worker.store import StoredJob

    await store.put_job(
        StoredJob(
            name=job.name,
            digest=job.digest,
            manifest=job.manifest,
            parts=dict(job.parts),
            signature=signature,
        )
    )


def _signer(file: Path | None) -> Callable[[str], str] | None:
    if file is None:
        return None
    from spliteasy.job.signing import read_signer

    return read_signer(file)


async def _begun(job: Job, version: str, store: str | None, keys: StoreKeys) -> Job:
    """Return the job with the trained body of that version. Raises UserError, JobError."""
    from spliteasy.job.begun import begun_from
    from spliteasy_cli.fleets.trained import trained_body

    async with store_at(store, keys=keys) as open_store:
        return begun_from(job, await trained_body(open_store, version))


async def _submit(job: Job, store: str | None, signature: str | None) -> None:
    async with store_at(store) as open_store:
        await store_job(open_store, job, signature)
