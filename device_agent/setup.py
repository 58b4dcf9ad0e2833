"""An agent sets up data, trainer, state folder and plan before its first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from device_agent.config import AgentConfig
from device_agent.job_source import FetchedJob
from device_agent.link.link import Link
from device_agent.session.plan import SessionPlan
from device_agent.state_folder import StateFolder
from device_agent.training.budget import Budget
from device_agent.training.codec_policy import MakeChooser, StepChoices
from device_agent.training.data import BatchOrder, DeviceData, EvaluationBatches, load_dataset
from device_agent.training.disguise import refuse_disguised, warn_of_labels
from device_agent.training.ends import as_paths, ends_key, initial_ends, job_key, label_key
from device_agent.training.trainer import ROUND_KEY, DeviceTrainer
from spliteasy.errors import DataError, StateError, UserError
from spliteasy.job import Job
from spliteasy.job.spec import FleetSpec
from spliteasy.privacy.defences.label_dp import classes_to_answer, guarantee
from spliteasy.runtime.randomness import Key
from spliteasy.runtime.version import version

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The parts that an agent's session needs."""

    trainer: DeviceTrainer
    plan: SessionPlan
    held: tuple[int, ...]
    """Steps whose checkpoints the session may go on from."""
    adopt: Callable[[], None] = lambda: None
    """Binds the folder to the job, where that is to go on from its weights: once the store has agreed."""


def prepare(
    config: AgentConfig,
    fetched: FetchedJob,
    state: StateFolder,
    *,
    session: str,
    link: Link,
    make_chooser: MakeChooser,
) -> Prepared:
    """Load the data, check it, bind the state folder to it; a new one gets its ends and checkpoint 0."""
    job, bound = fetched.job, state.binding
    spec, handing_over = job.spec, bound is not None and bound.job != job.digest
    secret = state.secret(config.secret)
    key, labels = job_key(secret, device=config.device, job=job.digest), label_key(secret)
    batches, tests = _load_data(config, job, key, labels, handing_over=handing_over)
    drawn_from, fleet_key = ends_key(config.fleet_key, key, job)
    ends = initial_ends(
        job, state, drawn_from, refuse_public=config.refuse_public_ends, handing_over=handing_over
    )
    choices = StepChoices(
        spec.link,
        make_chooser(spec.link, link.speed),
        ahead=spec.durability.checkpoint_every,
        saved=None if handing_over else state.codecs,
        save=state.save_codecs,
    )
    trainer = DeviceTrainer.create(
        job,
        batches,
        tests,
        device=config.device,
        key=key,
        ends=ends,
        choices=choices,
        stop_if_hijacked=config.stop_if_hijacked,
    )
    trainer.rounds.key_name, trainer.rounds.secret = fleet_key, drawn_from if fleet_key is not None else None
    if handing_over or config.new_data or not state.held():
        refuse_disguised(job, trainer.head.segment, batches.batch(1)[0])
        warn_of_labels(job)
    mark = batches.fingerprint
    if handing_over:
        state.check_owner(device=config.device, fingerprint=mark, new_data=config.new_data)
        _check_fit(trainer, state)
    else:
        state.bind(job=job.digest, device=config.device, fingerprint=mark, new_data=config.new_data)
        if config.restart:
            state.drop_after(-1)
        if batches.poisson is not None:
            trainer.budget = Budget(state, batches.poisson)
        if not state.held():
            state.save_checkpoint(0, trainer.state())

    def adopt() -> None:
        if handing_over:
            state.hand_over(job=job.digest, fingerprint=mark, ends=as_paths(ends))
            fetched.save(state)

    trainer.rounds.length = round_length(spec.fleet, batches)
    previous = None if bound is None else bound.job if handing_over else bound.previous
    plan = _plan(config, trainer, batches, tests, session=session, link=link, previous=previous)
    # The first checkpoint is of no trained weights: a store that has forgotten the session would begin there.
    held = tuple(step for step in state.held() if step or not handing_over)
    return Prepared(trainer, plan, held, adopt)


def _load_data(
    config: AgentConfig, job: Job, key: Key, labels: Key, *, handing_over: bool
) -> tuple[BatchOrder, EvaluationBatches | None]:
    """Load the device's data for training and, where there is some, for evaluation; log what it promises.

    Raises DataError.
    """
    spec = job.spec
    data: DeviceData = load_dataset(
        config.data, config.device, job.signature, root=config.root, recipe=spec.data
    )
    for note in data.notes:
        log.warning(note, device=config.device)
    lasting = spec if config.epochs is None else spec.model_copy(update={"epochs": config.epochs})
    batches = BatchOrder(data.train, lasting, job.signature, device=config.device, key=key, labels=labels)
    if batches.poisson is not None:
        _check_unchanged(config, handing_over=handing_over)
        log.info(batches.poisson.guarantee(), job=str(job))
    tests = (
        EvaluationBatches(data.test, spec, job.signature, device=config.device, key=key)
        if data.test is not None
        else None
    )
    if spec.evaluation.patience is not None and tests is None:
        raise DataError(
            f"{config.device} has no test data, and the job ends a training by its evaluations",
            hint="let the data function return (train, test), or leave evaluation.patience out of the job",
        )
    if spec.privacy.label_dp is not None:
        log.info(guarantee(spec.privacy.label_dp, classes_to_answer(spec, job.signature)), job=str(job))
    return batches, tests


def _plan(
    config: AgentConfig,
    trainer: DeviceTrainer,
    batches: BatchOrder,
    tests: EvaluationBatches | None,
    *,
    session: str,
    link: Link,
    previous: str | None,
) -> SessionPlan:
    """Return the session's plan. `previous` is the version that the checkpoints were trained on before."""
    job, spec = trainer.job, trainer.job.spec
    rounds = batches.total_steps // trainer.rounds.length if trainer.rounds.length else 0
    # Where the body is shared each step is a window, after which all go on from a mean.
    windows = trainer.rounds.length if spec.fleet.shares_body else 1
    round_steps = trainer.rounds.length // windows
    return SessionPlan(
        session=session,
        digest=job.digest,
        # Rounds are whole, and each ends with a step that goes on from the mean; so the first one begins.
        total_steps=rounds * windows * (round_steps + 1) + 1 if round_steps else batches.total_steps,
        round_steps=round_steps,
        means_per_round=windows,
        checkpoint_every=spec.durability.checkpoint_every,
        eval_every=spec.evaluation.every_epochs * batches.steps_per_epoch,
        eval_batches=len(tests) if tests is not None else 0,
        has_tail=job.tail is not None,
        stops_early=trainer.evaluator.best is not None,
        micro_batches=spec.micro_batches,
        takeover=config.takeover,
        restart=config.restart,
        reply_timeout_s=config.reply_timeout_s,
        ask_above_bytes=link.frame_bytes,
        rows_per_epoch=batches.steps_per_epoch * spec.batch_size if trainer.names_rows else 0,
        agent=version(),
        previous=previous,
    )


def _check_fit(trainer: DeviceTrainer, state: StateFolder) -> None:
    """Raise StateError unless the folder has weights that were trained, of the job's shapes."""
    assert state.binding is not None
    step = max(state.held(), default=0)
    job, before = trainer.job, f"{trainer.job.name}@{state.binding.job[:12]}"
    if step == 0:
        raise StateError(
            f"{state.path} has no trained weights of {before} to go on from",
            hint="begin the new version: --restart and another --state folder",
        )
    weights = state.load_checkpoint(step)
    if job.spec.fleet.has_rounds or ROUND_KEY in weights:
        raise StateError(
            f"{job.name}@{job.digest[:12]} can't go on from the weights of {before}: the rounds of a fleet "
            "belong to one version",
            hint="begin the new version: --restart and another --state folder",
        )
    if (why := trainer.misfit(weights)) is not None:
        raise StateError(
            f"{job.name}@{job.digest[:12]} can't go on from the weights of {before}: {why}",
            hint="begin the new version: --restart and another --state folder",
        )


def round_length(fleet: FleetSpec, batches: BatchOrder) -> int:
    """Steps of this device between two means, at most all that it takes; 0: there are no rounds."""
    if not fleet.has_rounds:
        return 0
    epochs = fleet.epochs_per_round
    steps = fleet.round_steps if epochs is None else epochs * batches.steps_per_epoch
    assert steps is not None
    return min(steps, batches.total_steps)


def _check_unchanged(config: AgentConfig, *, handing_over: bool) -> None:
    """Refuse what would change the noise or the budget of a private training. Raises UserError."""
    options = {
        "--epochs": config.epochs is not None,
        "--new-data": config.new_data,
        "going on from the weights of another version": handing_over,
    }
    for option, given in options.items():
        if given:
            raise UserError(
                f"{option} changes what a training under [privacy.dp] spends",
                hint="submit a job with other settings, and begin it in another --state folder",
            )
