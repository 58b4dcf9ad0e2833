"""What an agent does before its first step: data, trainer, state folder, plan."""

from __future__ import annotations

import structlog

from device_agent.config import AgentConfig
from device_agent.link.link import Link
from device_agent.session.plan import SessionPlan
from device_agent.state_folder import StateFolder
from device_agent.training.budget import Budget
from device_agent.training.codec_policy import MakeChooser, StepChoices
from device_agent.training.data import BatchOrder, DeviceData, EvaluationBatches, load_dataset
from device_agent.training.ends import initial_ends, job_key, label_key
from device_agent.training.trainer import DeviceTrainer
from spliteasy.errors import UserError
from spliteasy.job import Job
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
    if batches.poisson is not None:
        _check_unchanged(config)
        log.info(batches.poisson.guarantee(), job=str(job))
    tests = (
        EvaluationBatches(data.test, spec, job.signature, device=config.device, key=key)
        if data.test is not None
        else None
    )
    if spec.privacy.label_dp is not None:
        log.info(guarantee(spec.privacy.label_dp, classes_to_answer(spec, job.signature)), job=str(job))
    ends = initial_ends(job, state, key, refuse_public=config.refuse_public_ends)
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
    state.bind(
        job=job.digest, device=config.device, fingerprint=batches.fingerprint, new_data=config.new_data
    )
    if config.restart:
        state.drop_after(-1)
    if batches.poisson is not None:
        trainer.budget = Budget(state, batches.poisson)
    if not state.held():
        state.save_checkpoint(0, trainer.state())
    plan = SessionPlan(
        session=session,
        digest=job.digest,
        total_steps=batches.total_steps,
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


def _check_unchanged(config: AgentConfig) -> None:
    """Refuse what would change the noise of a private training. Raises UserError."""
    for option, given in (("--epochs", config.epochs is not None), ("--new-data", config.new_data)):
        if given:
            raise UserError(
                f"{option} changes how much noise a training under [privacy.dp] needs",
                hint="submit a job with other settings, and train it from the start",
            )
