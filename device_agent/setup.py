"""What an agent does before its first step: data, trainer, state folder, plan."""

from __future__ import annotations

import structlog

from device_agent.config import AgentConfig
from device_agent.link.link import Link
from device_agent.session.plan import SessionPlan
from device_agent.state_folder import StateFolder
from device_agent.training.codec_policy import MakeChooser, StepChoices
from device_agent.training.data import BatchOrder, DeviceData, EvaluationBatches, load_dataset
from device_agent.training.ends import ends_key, initial_ends, job_key, label_key
from device_agent.training.trainer import DeviceTrainer
from spliteasy.job import Job
from spliteasy.job.spec import FleetSpec
from spliteasy.privacy.defences.label_dp import classes_to_answer, guarantee
from spliteasy.runtime.version import version

log = structlog.get_logger(__name__)


def prepare(
    config: AgentConfig, job: Job, state: StateFolder, *, session: str, link: Link, make_chooser: MakeChooser
) -> tuple[DeviceTrainer, SessionPlan]:
    """Load the data, check it, bind the state folder to it; a new one gets its ends and checkpoint 0."""
    spec = job.spec
    secret = state.secret(config.secret)
    key, labels = job_key(secret, device=config.device, job=job.digest), label_key(secret)
    data: DeviceData = load_dataset(
        config.data, config.device, job.signature, root=config.root, recipe=spec.data
    )
    for note in data.notes:
        log.warning(note, device=config.device)
    lasting = spec if config.epochs is None else spec.model_copy(update={"epochs": config.epochs})
    batches = BatchOrder(data.train, lasting, job.signature, device=config.device, key=key, labels=labels)
    tests = (
        EvaluationBatches(data.test, spec, job.signature, device=config.device, key=key)
        if data.test is not None
        else None
    )
    if spec.privacy.label_dp is not None:
        log.info(guarantee(spec.privacy.label_dp, classes_to_answer(spec, job.signature)), job=str(job))
    drawn_from, fleet_key = ends_key(config.fleet_key, key, job)
    ends = initial_ends(job, state, drawn_from, refuse_public=config.refuse_public_ends)
    choices = StepChoices(
        spec.link,
        make_chooser(spec.link, link.speed),
        ahead=spec.durability.checkpoint_every,
        saved=state.codecs,
        save=state.save_codecs,
    )
    trainer = DeviceTrainer.create(
        job, batches, tests, device=config.device, key=key, ends=ends, choices=choices
    )
    trainer.fleet_key, trainer.fleet_secret = fleet_key, drawn_from if fleet_key is not None else None
    state.bind(
        job=job.digest, device=config.device, fingerprint=batches.fingerprint, new_data=config.new_data
    )
    if config.restart:
        state.drop_after(-1)
    if not state.held():
        state.save_checkpoint(0, trainer.state())
    round_steps = round_length(spec.fleet, batches)
    rounds = batches.total_steps // round_steps if round_steps else 0
    plan = SessionPlan(
        session=session,
        digest=job.digest,
        # Rounds are whole, and each ends with a step that goes on from the mean; so the first one begins.
        total_steps=rounds * (round_steps + 1) + 1 if round_steps else batches.total_steps,
        round_steps=round_steps,
        checkpoint_every=spec.durability.checkpoint_every,
        eval_every=spec.evaluation.every_epochs * batches.steps_per_epoch,
        eval_batches=len(tests) if tests is not None else 0,
        has_tail=job.tail is not None,
        micro_batches=spec.micro_batches,
        takeover=config.takeover,
        restart=config.restart,
        reply_timeout_s=config.reply_timeout_s,
        ask_above_bytes=link.frame_bytes,
        agent=version(),
    )
    return trainer, plan


def round_length(fleet: FleetSpec, batches: BatchOrder) -> int:
    """Steps of this device between two means, at most all that it takes; 0: there are no rounds."""
    if not fleet.averages:
        return 0
    epochs = fleet.epochs_per_round
    steps = fleet.round_steps if epochs is None else epochs * batches.steps_per_epoch
    assert steps is not None
    return min(steps, batches.total_steps)
