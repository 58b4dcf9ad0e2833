"""Record a training for the gate: real agent, real worker, broker and store in this process.

`record` trains on a sample of the device's data, lets the trained device predict, and gives a `Recording`:
every message that passed, what the store holds of it, the released model, and the truth for scoring.
`view_of` cuts from it what one adversary has.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from broker import decode
from broker.protocol import messages as m
from device_agent.config import AgentConfig
from device_agent.link.link import Connect
from device_agent.observations import Observation, StepTaken
from device_agent.state_folder import StateFolder
from device_agent.training.data import DeviceData
from device_agent.training.ends import with_ends
from device_agent.training.trainer import HEAD, TAIL, DeviceTrainer
from server_worker.config import Trust, WorkerConfig
from server_worker.replica.kept_state import holds_state
from server_worker.store import StoreKeys, open_store
from server_worker.store.keys import StoreKey
from spliteasy.codecs.packer import PLAIN
from spliteasy.errors import WireError
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.privacy.ends import draw
from spliteasy.privacy.record import Adversary, Evaluated, Hijacker, Released, Step, Tensors, Truth, View
from spliteasy.training.reference import State
from spliteasy.training.segment_trainer import MODEL_PREFIX
from spliteasy_cli.commands.submit import store_job
from spliteasy_cli.leakage.decoded import evaluations_of, exchange_of, steps_of
from spliteasy_cli.leakage.sample import DEVICE, OTHER, Sample, gather, to_predict
from spliteasy_cli.leakage.wire_tap import TappedBroker
from spliteasy_cli.support.comparison import with_body
from spliteasy_cli.support.embedded import async_connect, run_agent, workers_running
from spliteasy_cli.support.session_client import calling
from spliteasy_cli.support.trained_device import TrainedHalf

SECRET = hashlib.blake2b(b"a secret of a recorded training", digest_size=32).digest()
"""The device's, so that the same job is measured alike each time; nothing but the device uses it."""

STORE_KEY = hashlib.blake2b(b"a key of a recorded training's store", digest_size=32).digest()
"""The workers', where a store is sealed."""

STEPS = 48
KNOWN = 2
"""Labels of each class that the attack with known labels is given."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Recording:
    """One recorded training."""

    job: Job
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluated, ...]
    store_readable: bool
    """The store's log can be read by somebody who has nothing else."""
    steps_per_epoch: int
    released: Released
    members: tuple[Tensors, Tensors]
    """(inputs, targets) of all samples that were trained on."""
    sample: Sample
    truth: Truth
    hijacker: Hijacker | None


async def record(
    job: Job,
    sample: Sample,
    folder: Path,
    *,
    steps: int = STEPS,
    hijacker: Hijacker | None = None,
    sealed: bool = False,
    stop: asyncio.Event | None = None,
    tell: Callable[[int, int], None] = lambda _step, _steps: None,
) -> Recording:
    """Train `steps` steps (fewer if the training ends or `stop` is set) and keep what passed.

    `folder` takes store and state. `hijacker` answers in the worker's place. `tell` gets the step and the
    last one. Raises SplitEasyError.
    """
    broker = TappedBroker(None if hijacker is None else _Hijacking(job, hijacker))
    url = f"sqlite:///{folder / 'store.sqlite'}"
    store = await open_store(url, StoreKeys((StoreKey(STORE_KEY),), open_too=False) if sealed else None)
    enough = asyncio.Event()

    def observe(observation: Observation) -> None:
        if isinstance(observation, StepTaken):
            last = min(steps, observation.total_steps)
            tell(observation.step, last)
            if observation.step >= last or (stop is not None and stop.is_set()):
                enough.set()

    data = DeviceData(sample.train, sample.test)
    config = AgentConfig(
        job=f"{job.name}@{job.digest}", device=DEVICE, data=data, state=folder / DEVICE, secret=SECRET
    )
    connect_as = async_connect(broker)
    predicted = None if hijacker is not None else await asyncio.to_thread(to_predict, job, sample)
    try:
        await store_job(store, job)
        # Attacks look at the wire: what the worker computes from has to pass there in every epoch.
        settings = WorkerConfig(rows_bytes=0)
        async with workers_running(1, store, connect_as, trust=Trust.ENROLLED, config=settings):
            connect = partial(connect_as, DEVICE)
            result, agent = await run_agent(config, connect, stop=enough, observe=observe)
            trained = len(broker.messages)
            assert agent.trainer is not None
            if predicted is not None:
                await _predict(predicted[0], agent.trainer, folder / DEVICE, result.step, connect)
        session = f"{job.name}.{DEVICE}"
        _, state = await with_body(store, job, session, result.step, _ends(agent.trainer))
    finally:
        await store.close()
    readable = await _store_is_readable(url, session, result.step)
    messages = broker.messages[:trained], broker.messages[trained:]
    return _recording(job, sample, messages, predicted, agent.trainer, state, hijacker, readable)


async def _predict(
    inputs: Tensors, trainer: DeviceTrainer, folder: Path, step: int, connect: Connect
) -> None:
    """Predict as `spliteasy predict` does, with what the device holds after that step."""
    job = trainer.job
    with StateFolder(folder) as state:
        attempt = state.attempt
    assert attempt is not None
    half = TrainedHalf(
        job=job,
        session=f"{job.name}.{DEVICE}",
        attempt=attempt,
        step=step,
        head=trainer.head,
        tail=trainer.tail,
        transforms=trainer.transforms,
    )
    async with calling(connect, half.session, job.digest) as caller:
        await half.predict(inputs, caller)


def _ends(trainer: DeviceTrainer) -> State:
    return {k.removeprefix(HEAD).removeprefix(TAIL): tensor for k, tensor in trainer.state().items()}


async def _store_is_readable(url: str, session: str, step: int) -> bool:
    """Return whether somebody who has the store alone can read its log.

    Where the last entry holds a state, others may hold requests: a batch of another size, say.
    """
    store = await open_store(url)
    try:
        async for entry in store.read_log(session, after=step - 1, upto=step):
            return holds_state(entry) or all(
                isinstance(decode(raw), m.Forward | m.Backward) for raw in entry.requests
            )
    except WireError:
        return False
    finally:
        await store.close()
    return False


def _recording(
    job: Job,
    sample: Sample,
    messages: tuple[Sequence[m.AnyMessage], Sequence[m.AnyMessage]],
    predicted: tuple[Tensors, Tensors] | None,
    trainer: DeviceTrainer,
    state: State,
    hijacker: Hijacker | None,
    store_readable: bool,
) -> Recording:
    """`messages` are those of the training, and those after it."""
    training, after = messages
    steps = steps_of(job, training)
    batches = trainer.batches
    loaded = [batches.batch(number)[0] for number in range(1, len(steps) + 1)]
    places = [tuple(batches.indices(number)) for number in range(1, len(steps) + 1)]
    members = gather(job, sample.train, len(sample.train), "members")
    truth = Truth(
        inputs=tuple(loaded),
        targets=tuple(tuple(each[list(rows)] for each in members[1]) for rows in places),
        indices=tuple(places),
        canaries=sample.canaries,
        members=len(sample.train),
        evaluated=_truth_of_evaluations(trainer, training, predicted),
    )
    return Recording(
        job=job,
        steps=steps,
        evaluations=evaluations_of(job, training, "evaluation") + evaluations_of(job, after, "prediction"),
        store_readable=store_readable,
        steps_per_epoch=batches.steps_per_epoch,
        released=Released(
            head=_state_of(job.head, state),
            body=_state_of(job.body, state),
            tail=None if job.tail is None else _state_of(job.tail, state),
        ),
        members=members,
        sample=sample,
        truth=truth,
        hijacker=hijacker,
    )


def _state_of(segment: Segment, state: State) -> dict[str, Tensor]:
    return {name: state[MODEL_PREFIX + name] for name in segment.state_dict()}


def _truth_of_evaluations(
    trainer: DeviceTrainer, messages: Sequence[m.AnyMessage], predicted: tuple[Tensors, Tensors] | None
) -> Truth | None:
    """Return the samples of each evaluation that was answered, and of the prediction behind them."""
    answered = {x.answers for x in messages if isinstance(x, m.Evaluated)}
    asked = [x for x in messages if isinstance(x, m.Eval) and x.request in answered]
    places: list[tuple[int, int]] = []
    for each in asked:  # a device asks for its batches in order
        places.append((sum(step == each.step for _, step in places), each.step))
    tests = trainer.evaluator.tests
    batches = [] if tests is None else [tests.batch(*place) for place in places]
    indices = [] if tests is None else [tuple(tests.indices(*place)) for place in places]
    if predicted is not None:
        batches.append(predicted)
        indices.append(tuple(range(len(predicted[0][0]))))
    if not batches:
        return None
    return Truth(
        inputs=tuple(inputs for inputs, _ in batches),
        targets=tuple(targets for _, targets in batches),
        indices=tuple(indices),
        canaries=frozenset(),
        members=0,
    )


class _Hijacking:
    """Puts the hijacker's gradients into the GRADIENTs that pass."""

    def __init__(self, job: Job, hijacker: Hijacker) -> None:
        self._job, self._hijacker = job, hijacker
        self._forwards: dict[str, m.Forward] = {}
        self._backwards: dict[str, str] = {}

    def saw(self, message: m.AnyMessage) -> None:
        if isinstance(message, m.Forward):
            self._forwards[message.request] = message
        elif isinstance(message, m.Backward):
            self._backwards[message.request] = message.forward

    def change(self, gradient: m.Gradient) -> m.Gradient:
        forward = self._forwards[self._backwards.get(gradient.answers, gradient.answers)]
        exchange = exchange_of(self._job, forward, None, None, gradient)
        made = self._hijacker.gradients(exchange.activations, exchange.gradients)
        return gradient.model_copy(update={"values": made, "codec": PLAIN, "packing": ()})


def view_of(recording: Recording, adversary: Adversary) -> View:
    """Return what that adversary has of the recording."""
    sample, readable = recording.sample, recording.store_readable
    sees = adversary is not Adversary.MEMBER and (adversary is not Adversary.STORE or readable)
    strangers = sample.strangers or ((), ())
    view = View(
        adversary=adversary,
        job=with_ends(recording.job, draw(recording.job.ends, OTHER)),
        device=DEVICE,
        steps=recording.steps if sees else (),
        evaluations=recording.evaluations if sees and adversary is not Adversary.STORE else (),
        steps_per_epoch=recording.steps_per_epoch,
        auxiliary=sample.public,
        released=recording.released if adversary is Adversary.HOLDER else None,
        candidates=_joined(recording.members[0], strangers[0]),
        candidate_targets=_joined(recording.members[1], strangers[1]),
        hijacker=recording.hijacker,
    )
    return replace(view, known=_known(recording, view)) if view.classes and view.steps else view


def _joined(members: Tensors, strangers: Tensors) -> Tensors:
    """Members first, and as many strangers as there are; none where there are none."""
    return tuple(torch.cat(pair) for pair in zip(members, strangers, strict=True)) if strangers else ()


def _known(recording: Recording, view: View) -> dict[int, int]:
    """The first rows of each class in the newest epoch, canaries left out, with their labels."""
    labels = recording.truth.labels(view.last_epoch).tolist()
    samples = recording.truth.samples(view.last_epoch).tolist()
    known: dict[int, int] = {}
    for row, (label, sample) in enumerate(zip(labels, samples, strict=True)):
        if sample not in recording.truth.canaries and list(known.values()).count(label) < KNOWN:
            known[row] = label
    return known
