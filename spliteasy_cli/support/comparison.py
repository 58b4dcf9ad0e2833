"""The comparison behind `parity`: the same steps split and in one process, then every tensor side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from broker import Transport, connect
from broker.transport.in_process import MemoryBroker
from device_agent.config import AgentConfig
from device_agent.evaluation.best_evaluation import BestEvaluation
from device_agent.evaluation.sums import Evaluation
from device_agent.link.link import Connect
from device_agent.observations import Observation, RoundEnded, StepTaken
from device_agent.state_folder import StateFolder
from device_agent.training.data import BatchOrder, EvaluationBatches, load_dataset
from device_agent.training.ends import initial_ends, job_key, label_key
from device_agent.training.trainer import HEAD, TAIL, DeviceTrainer
from server_worker.config import Trust
from server_worker.replica.direct_body import DirectBody
from server_worker.store import Store, StoreKeys, open_store
from spliteasy.errors import DataError, SplitEasyError, UserError
from spliteasy.fleet.program import FleetProgram, PlainDevice, Stint
from spliteasy.fleet.record import RoundRecord
from spliteasy.fleet.shared_program import SharedProgram
from spliteasy.job import Job, load_job_file
from spliteasy.job.source import build_model, load_source, users_loss
from spliteasy.runtime import user_code
from spliteasy.runtime.randomness import Key
from spliteasy.splitting.split import regrouped_note
from spliteasy.training.losses import LOSSES
from spliteasy.training.reference import PlainTraining, State, difference
from spliteasy.training.segment_trainer import (
    ACCUMULATED_PREFIX,
    AVERAGE_PREFIX,
    MODEL_PREFIX,
    OPTIMIZER_PREFIX,
)
from spliteasy_cli.commands.submit import store_job
from spliteasy_cli.commands.train import STORE_FILE, agent_configs
from spliteasy_cli.fleets.faults import Faults, run_agent_through, workers_dying
from spliteasy_cli.fleets.first_round import begin_rounds, check_size, fleet_name
from spliteasy_cli.support.embedded import ConnectAs, async_connect, run_agent, workers_running
from spliteasy_cli.support.endpoints import blobs_folder

EMBEDDED_WORKERS = 2
COMPARED = (MODEL_PREFIX, OPTIMIZER_PREFIX, ACCUMULATED_PREFIX, AVERAGE_PREFIX)
"""The names of tensors that plain PyTorch has, too, begin with one of these."""

NAME_ROOM = 55
"""Characters of the job's name that its copy for the comparison keeps."""


@dataclass(frozen=True, slots=True)
class ParityPlan:
    """The plan of a comparison. Its job is a copy with another name, so that nobody's session is touched."""

    job: Job
    root: Path
    folder: Path
    steps: int
    configs: Sequence[AgentConfig]
    batches: Sequence[BatchOrder]
    """Each device's data once more, for the training in one process."""
    tests: Sequence[EvaluationBatches | None]
    """Each device's test data, likewise."""
    faults: Faults | None = None
    """The faults under which a fleet trains."""

    @property
    def sessions(self) -> list[str]:
        return [f"{self.job.name}.{config.device}" for config in self.configs]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One device's split training beside the one in one process, after `step`."""

    device: str
    step: int
    differences: dict[str, float]
    """The largest absolute difference of each tensor; infinite where one side lacks it."""
    unequal_bits: tuple[str, ...]
    """Tensors that are equal as numbers but not in their bits."""


def prepare(
    job_file: Path,
    steps: int,
    devices: int,
    data: str | None,
    folder: Path,
    secret: bytes | None = None,
    *,
    partition: str | None = None,
    faults: Faults | None = None,
) -> ParityPlan:
    """Export the job and load the data; state and store go to `folder`. Raises UserError."""
    spec, root = load_job_file(job_file), user_code.project_root(job_file)
    copy = spec.model_copy(update={"name": f"{spec.name[:NAME_ROOM]}-parity"})
    job = Job.create(copy, root)
    check_size(spec.fleet, devices)
    configs = agent_configs(job, job_file, folder, devices, data, secret, partition=partition)
    batches, tests = [], list[EvaluationBatches | None]()
    for config in configs:
        key, labels = key_of(config, job), labels_of(config)
        loaded = [
            load_dataset(config.data, config.device, job.signature, root=root, recipe=copy.data)
            for _ in range(2)
        ]
        once, again = (
            BatchOrder(data.train, copy, job.signature, device=config.device, key=key, labels=labels)
            for data in loaded
        )
        held_out = loaded[1].test
        tests.append(
            None
            if held_out is None
            else EvaluationBatches(held_out, copy, job.signature, device=config.device, key=key)
        )
        if once.fingerprint != again.fingerprint:
            raise DataError(
                f"{config.data} gives {config.device} other data at each call",
                hint="seed what is random in it by the device's id",
            )
        if once.total_steps < steps:
            raise UserError(
                f"{config.device} has only {once.total_steps} steps in {spec.epochs} epochs",
                hint=f"--steps {once.total_steps}, or more epochs",
            )
        batches.append(once)
    if spec.fleet.has_rounds:  # rounds are whole, so that as many epochs are trained as have the steps
        epochs = [-(-steps // each.steps_per_epoch) for each in batches]
        configs = [replace(config, epochs=n) for config, n in zip(configs, epochs, strict=True)]
    return ParityPlan(job, root, folder, steps, configs, batches, tests, faults)


async def compare(
    plan: ParityPlan,
    broker: str | None,
    store: str | None,
    keys: StoreKeys,
    workers: int | None,
    stop: asyncio.Event,
) -> list[Comparison]:
    """Train split, then in one process. Raises UserError, LinkError, StoreError."""
    if plan.job.spec.fleet.has_rounds:
        return await compare_fleet(plan, broker, store, keys, workers, stop)
    split = await train_split(plan, broker, store, keys, workers, stop)
    return [await asyncio.to_thread(compare_one, plan, index, trained) for index, trained in enumerate(split)]


async def compare_fleet(
    plan: ParityPlan,
    broker: str | None,
    store: str | None,
    keys: StoreKeys,
    workers: int | None,
    stop: asyncio.Event,
) -> list[Comparison]:
    """Train the fleet to its end, then run the plain program on the rounds as they were decided."""
    async with _served(plan, broker, store, keys, workers) as (opened, connect_as):
        async with asyncio.TaskGroup() as group:
            devices = [
                group.create_task(_train_member(plan, config, partial(connect_as, config.device), stop))
                for config in plan.configs
            ]
        members = [device.result() for device in devices]
        lines = await opened.fleets.rounds(fleet_name(plan.job))
        split = [
            (await with_body(opened, plan.job, session, member.step, member.half))[1]
            for session, member in zip(plan.sessions, members, strict=True)
        ]
    records = [RoundRecord.from_json(line) for line in lines]
    plain = await asyncio.to_thread(run_plain_program, plan, members, records)
    return [
        compared(config.device, member.stints[-1].step, state, plain[config.device])
        for config, member, state in zip(plan.configs, members, split, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _TrainedMember:
    """The end of a device's training in a fleet."""

    step: int
    """The last of all its steps."""
    half: State
    stints: tuple[Stint, ...]


async def _train_member(
    plan: ParityPlan, config: AgentConfig, connect: Connect, stop: asyncio.Event
) -> _TrainedMember:
    """Train a device to its end. Raises UserError where it was stopped before."""
    stints = list[Stint]()

    def observe(observation: Observation) -> None:
        if isinstance(observation, RoundEnded):
            while stints and stints[-1].step >= observation.step:
                stints.pop()  # the device has gone back since
            stints.append(Stint(observation.round, observation.step))

    if plan.faults is None:
        result, agent = await run_agent(config, connect, stop=stop, observe=observe)
    else:
        result, agent = await run_agent_through(plan.faults, config, connect, stop=stop, observe=observe)
    if not result.done:
        raise UserError("stopped before the end: nothing is compared", hint="let the comparison run")
    assert agent.trainer is not None
    return _TrainedMember(agent.trainer.step, half_of(agent.trainer), tuple(stints))


def run_plain_program(
    plan: ParityPlan, members: Sequence[_TrainedMember], records: Sequence[RoundRecord]
) -> dict[str, State]:
    """Return what the devices end with in one process. Runs the user's model code."""
    devices = {
        config.device: PlainDevice(plain_training(plan, config, batches), batches, member.stints)
        for config, batches, member in zip(plan.configs, plan.batches, members, strict=True)
    }
    if plan.job.spec.fleet.shares_body:
        common = plain_training(plan, plan.configs[0], plan.batches[0])
        return SharedProgram(plan.job, devices, common).run(records)
    return FleetProgram(plan.job, devices).run(records)


@dataclass(frozen=True, slots=True)
class TrainedSplit:
    """The end of a device's split training."""

    step: int
    """The step that it ended at: that of the best evaluation, where the job keeps it."""
    taken: int
    """The last step that was taken."""
    state: State


async def train_split(
    plan: ParityPlan,
    broker: str | None,
    store: str | None,
    keys: StoreKeys,
    workers: int | None,
    stop: asyncio.Event,
) -> list[TrainedSplit]:
    """Return the step at which each device ended, and the whole model's state there.

    The device's part is what its agent ends with, the body's what the store restores.
    """
    async with _served(plan, broker, store, keys, workers) as (opened, connect_as):
        async with asyncio.TaskGroup() as group:
            devices = [
                group.create_task(_train_device(plan, config, partial(connect_as, config.device), stop))
                for config in plan.configs
            ]
        ended = [device.result() for device in devices]
        return [
            TrainedSplit(step, taken, (await with_body(opened, plan.job, session, step, half))[1])
            for session, (step, taken, half) in zip(plan.sessions, ended, strict=True)
        ]


@asynccontextmanager
async def _served(
    plan: ParityPlan, broker: str | None, store: str | None, keys: StoreKeys, workers: int | None
) -> AsyncIterator[tuple[Store, ConnectAs]]:
    """Return a store that has the job and nothing of an earlier comparison, and workers that serve it."""
    embedded = async_connect(MemoryBroker(policy=plan.faults) if plan.faults else MemoryBroker())
    connect_as = embedded if broker is None else _anyhow(partial(connect, broker))
    url = store or f"sqlite:///{plan.folder / STORE_FILE}"
    opened = await open_store(url, keys, blobs=blobs_folder())
    try:
        count = workers if workers is not None else 0 if broker else EMBEDDED_WORKERS
        if count == 0 and not await opened.workers():
            raise UserError("no worker serves this store", hint="start one, or give --workers 2")
        await _forget(opened, plan)
        await store_job(opened, plan.job)
        await begin_rounds(opened, plan.job, plan.configs)
        trust = Trust.OPEN if broker else Trust.ENROLLED
        if plan.faults is None:
            serving: AbstractAsyncContextManager[object] = workers_running(
                count, opened, connect_as, trust=trust
            )
        else:
            serving = workers_dying(plan.faults, count, opened, connect_as, trust=trust)
        async with serving:
            yield opened, connect_as
        await _forget(opened, plan)
    finally:
        await opened.close()


async def _train_device(
    plan: ParityPlan, config: AgentConfig, connect: Connect, stop: asyncio.Event
) -> tuple[int, int, State]:
    """Train `plan.steps` steps (fewer if `stop` is set): the step that it ended at, the last one taken, and
    head and tail after the first."""
    enough, taken = asyncio.Event(), 0

    def observe(observation: Observation) -> None:
        nonlocal taken
        if isinstance(observation, StepTaken):
            taken = observation.step
        whole = taken == plan.batches[plan.configs.index(config)].total_steps
        if stop.is_set() or (taken >= plan.steps and not whole):  # a whole training goes on to its best step
            enough.set()

    result, agent = await run_agent(config, connect, stop=enough, observe=observe)
    assert agent.trainer is not None
    return result.step, taken, half_of(agent.trainer)


def half_of(trainer: DeviceTrainer) -> State:
    """Return the state of head and tail, under the original model's names."""
    return {name.removeprefix(HEAD).removeprefix(TAIL): tensor for name, tensor in trainer.state().items()}


async def with_body(store: Store, job: Job, session: str, step: int, half: State) -> tuple[int, State]:
    """`half` and the body, as a worker that takes over would restore it. Raises SplitEasyError."""
    meta = await store.session(session)
    if meta is None or meta.committed != step:
        raise SplitEasyError(f"{session}: the device ended at step {step}, the store did not")
    base = max(kept for kept in meta.snapshots if kept <= step)
    memory = DirectBody(job, session)
    memory.restore(await store.read_snapshot(session, base), base)
    async for entry in store.read_log(session, after=base, upto=step):
        await asyncio.to_thread(memory.replay, entry)
    whole = {**half, **memory.snapshot()}
    return step, {name: tensor for name, tensor in whole.items() if name.startswith(COMPARED)}


async def _forget(store: Store, plan: ParityPlan) -> None:
    for session in plan.sessions:
        await store.forget(session)
    await store.fleets.forget(fleet_name(plan.job))


def _anyhow(connect: Connect) -> ConnectAs:
    """One account for all: who connects makes no difference."""

    async def connect_as(_principal: str) -> Transport:
        return await connect()

    return connect_as


def key_of(config: AgentConfig, job: Job) -> Key:
    """The key of a device of this process, whose secret is made where its state folder has none yet."""
    with StateFolder(config.state) as state:
        return job_key(state.secret(config.secret), device=config.device, job=job.digest)


def labels_of(config: AgentConfig) -> Key:
    """Return the key that a device of this process draws its answers for labels from."""
    with StateFolder(config.state) as state:
        return label_key(state.secret(config.secret))


def compare_one(plan: ParityPlan, index: int, split: TrainedSplit) -> Comparison:
    """Train the same steps in one process, from the device's own ends and in its order, and compare.

    Where the training has gone back to its best evaluation, plain PyTorch finds that by evaluations of its
    own. Runs the user's model code.
    """
    config, batches = plan.configs[index], plan.batches[index]
    reference = plain_training(plan, config, batches)
    went_back = split.step < split.taken and not plan.job.spec.defended
    best, kept = BestEvaluation(plan.job.spec.evaluation), reference.state()
    for number in range(1, (split.taken if went_back else split.step) + 1):
        if batches.have_lengths:
            reference.step_on_samples(batches.samples(number))
        else:
            reference.step(*batches.batch(number), empty=batches.is_empty(number))
        if went_back and _is_evaluated(plan, batches, number, last=split.taken):
            best.judge(number, _plain_evaluation(plan, index, reference, number))
            if best.best_step == number:
                kept = {name: tensor.clone() for name, tensor in reference.state().items()}
    if not went_back:
        return compared(config.device, split.step, split.state, reference.state())
    if best.best_step != split.step:
        raise SplitEasyError(
            f"{config.device} ended at step {split.step}, and in plain PyTorch {best.about()}"
        )
    return compared(config.device, split.step, split.state, kept)


def _is_evaluated(plan: ParityPlan, batches: BatchOrder, step: int, *, last: int) -> bool:
    every = plan.job.spec.evaluation.every_epochs * batches.steps_per_epoch
    return step == last or step % every == 0


def _plain_evaluation(plan: ParityPlan, index: int, reference: PlainTraining, step: int) -> float | None:
    """Return the number that says which evaluation is the best, of the model in one process."""
    tests, job = plan.tests[index], plan.job
    assert tests is not None
    found = Evaluation(gathered=job.metrics())
    for number in range(len(tests)):
        inputs, targets = tests.batch(number, step)
        found.add(job, reference.evaluate(inputs), targets)
    return found.number(job.spec.evaluation.chosen_by)


def plain_training(plan: ParityPlan, config: AgentConfig, batches: BatchOrder) -> PlainTraining:
    """Return the user's model at step 0, with the device's own ends. Runs the user's model code."""
    device, key = config.device, key_of(config, plan.job)
    with StateFolder(config.state) as state:
        ends = initial_ends(plan.job, state, key, refuse_public=False)
    spec = plan.job.spec
    model, _, _ = build_model(spec, plan.root)
    loss = LOSSES[spec.loss.name] if spec.loss.name is not None else users_loss(spec, plan.root)
    sigma = batches.poisson.noise_multiplier if batches.poisson is not None else None
    return PlainTraining(plan.job, model, loss, device=device, key=key, ends=ends, noise_multiplier=sigma)


def compared(device: str, step: int, split: State, plain: State) -> Comparison:
    """Return how far the split training is from the plain one."""
    differences = {
        name: difference(split[name], plain[name]) if name in split and name in plain else float("inf")
        for name in {*split, *plain}
    }
    unequal = tuple(
        name
        for name, worst in sorted(differences.items())
        if worst == 0 and not same_bits(split[name], plain[name])
    )
    return Comparison(device, step, differences, unequal)


def why_different(plan: ParityPlan) -> str | None:
    """Say what is known of the job's cuts that lets the last bits differ. Runs the user's model code."""
    try:
        source = load_source(plan.job.spec, plan.root)
    except SplitEasyError:  # a factory that makes another model each time; the difference stands all the same
        return None
    return regrouped_note(source.traced, plan.job.spec.model.cuts, source.shared_inputs)


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether both hold the same bytes, dimension order aside."""
    a, b = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (ours, theirs))
    return torch.equal(a, b)
