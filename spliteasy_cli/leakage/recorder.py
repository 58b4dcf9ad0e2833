"""Record a training for the gate: real agent, real worker, broker and store in this process.

`record` trains on a sample of the device's data in which some labels were drawn at random (canaries), and
gives a `Recording`: every message that passed, what the store holds of it, the released model, and the truth
for scoring. `view_of` cuts from it what one adversary has.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from broker import decode
from broker.protocol import messages as m
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from device_agent.observations import Observation, StepTaken
from device_agent.training.data import DeviceData, load_dataset
from device_agent.training.ends import with_ends
from device_agent.training.samples import Samples
from device_agent.training.trainer import HEAD, TAIL, DeviceTrainer
from server_worker.config import Trust
from server_worker.store import StoreKeys, open_store
from server_worker.store.keys import StoreKey
from spliteasy.codecs.packer import PLAIN, expected_of, unpack
from spliteasy.errors import DataError, WireError
from spliteasy.graph.segment import Segment
from spliteasy.job import Job
from spliteasy.job.micro_batches import share_of
from spliteasy.privacy.ends import draw
from spliteasy.privacy.record import (
    Adversary,
    Evaluated,
    Exchange,
    Hijacker,
    Released,
    Step,
    Tensors,
    Truth,
    View,
    classes_of,
)
from spliteasy.runtime.randomness import Key
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy.training.reference import State
from spliteasy.training.segment_trainer import MODEL_PREFIX, Values
from spliteasy_cli.commands.submit import store_job
from spliteasy_cli.leakage.wire_tap import TappedBroker
from spliteasy_cli.support.comparison import with_body
from spliteasy_cli.support.embedded import async_connect, workers_running

DEVICE = "phone-1"
SECRET = hashlib.blake2b(b"a secret of a recorded training", digest_size=32).digest()
"""The device's, so that the same job is measured alike each time; nothing but the device uses it."""

STORE_KEY = hashlib.blake2b(b"a key of a recorded training's store", digest_size=32).digest()
"""The workers', where a store is sealed."""

OTHER = Key(bytes(32))
"""The key that everybody else draws from: an adversary that has the law of the ends begins with ends of its
own."""

SAMPLE = 512
"""Training samples that are used at most."""

STEPS = 48
CANARIES = 0.1
"""Share of the training samples whose label is drawn at random."""

KNOWN = 2
"""Labels of each class that the attack with known labels is given."""

HELD_OUT = 0.25
"""Share of the training data that stands for public data and strangers where there is no test data."""


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """The data that a recording trains on, and that it is judged against."""

    train: _Part
    test: Dataset[Any] | None
    canaries: frozenset[int]
    public: tuple[Tensors, Tensors] | None
    """Samples of the same kind that nobody trains on, for attacks that need some."""
    strangers: tuple[Tensors, Tensors] | None
    """Others, to tell members from."""


class _Part(Dataset[Any]):
    """Some items of a data set, a few with labels of our own."""

    def __init__(self, whole: Dataset[Any], indices: Sequence[int], labels: dict[int, int]) -> None:
        self._whole, self._indices, self._labels = whole, indices, labels

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        item = self._whole[self._indices[index]]
        if index not in self._labels:
            return item
        inputs, target = item
        label = self._labels[index]
        given = target[0] if isinstance(target, (tuple, list)) else target
        changed = torch.full_like(given, label) if isinstance(given, Tensor) else label
        return inputs, changed


def draw_sample(job: Job, data: str | DeviceData, root: Path | None, *, seed: int = 0) -> Sample:
    """A part of the device's data with canaries, and others that it is not trained on. Raises DataError."""
    loaded = load_dataset(data, DEVICE, job.signature, root=root, recipe=job.spec.data)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(loaded.train), generator=generator).tolist()  # type: ignore[arg-type]
    rest: Dataset[Any]
    if loaded.test is not None:
        rest, others = loaded.test, torch.randperm(len(loaded.test), generator=generator).tolist()  # type: ignore[arg-type]
    else:
        count = int(HELD_OUT * len(order))
        rest, others, order = loaded.train, order[:count], order[count:]
    chosen = order[:SAMPLE]
    if len(chosen) < 2:
        raise DataError("there is too little data to record a training on", hint="name more with --data")
    labels: dict[int, int] = {}
    classes = classes_of(job)
    if classes is not None:
        places = torch.randperm(len(chosen), generator=generator).tolist()
        for place in places[: round(CANARIES * len(chosen))]:
            labels[place] = int(torch.randint(classes, (), generator=generator))
    half = len(others) // 2
    public, strangers = others[:half][:SAMPLE], others[half:][:SAMPLE]
    gathered = Samples(rest, job.spec, job.signature, device=DEVICE, key=OTHER, name="held-out")
    return Sample(
        train=_Part(loaded.train, chosen, labels),
        test=loaded.test,
        canaries=frozenset(labels),
        public=gathered.gather(public, "public") if public else None,
        strangers=gathered.gather(strangers, "strangers") if strangers else None,
    )


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
    compute = TorchThread(DEVICE)
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
    try:
        await store_job(store, job)
        async with workers_running(1, store, connect_as, trust=Trust.ENROLLED):
            agent = Agent(config, connect=partial(connect_as, DEVICE), compute=compute, observe=observe)
            result = await agent.run(enough)
        assert agent.trainer is not None
        session = f"{job.name}.{DEVICE}"
        _, state = await with_body(store, job, session, result.step, _ends(agent.trainer))
    finally:
        compute.close()
        await store.close()
    readable = await _store_is_readable(url, session, result.step)
    return _recording(job, sample, broker.messages, agent.trainer, state, hijacker, readable)


def _ends(trainer: DeviceTrainer) -> State:
    return {k.removeprefix(HEAD).removeprefix(TAIL): tensor for k, tensor in trainer.state().items()}


async def _store_is_readable(url: str, session: str, step: int) -> bool:
    """Return whether somebody who has the store alone can read the requests in its log."""
    store = await open_store(url)
    try:
        async for entry in store.read_log(session, after=step - 1, upto=step):
            return all(isinstance(decode(raw), m.Forward | m.Backward) for raw in entry.requests)
    except WireError:
        return False
    finally:
        await store.close()
    return False


def _recording(
    job: Job,
    sample: Sample,
    messages: Sequence[m.AnyMessage],
    trainer: DeviceTrainer,
    state: State,
    hijacker: Hijacker | None,
    store_readable: bool,
) -> Recording:
    steps = _steps(job, messages)
    batches = trainer.batches
    loaded = [batches.batch(number)[0] for number in range(1, len(steps) + 1)]
    places = [tuple(batches.indices(number)) for number in range(1, len(steps) + 1)]
    members = Samples(
        sample.train, job.spec, job.signature, device=DEVICE, key=OTHER, name="training"
    ).gather(range(len(sample.train)), "members")
    truth = Truth(
        inputs=tuple(loaded),
        targets=tuple(tuple(each[list(rows)] for each in members[1]) for rows in places),
        indices=tuple(places),
        canaries=sample.canaries,
        members=len(sample.train),
        evaluated=_truth_of_evaluations(trainer, messages),
    )
    return Recording(
        job=job,
        steps=steps,
        evaluations=_evaluations(job, messages),
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


def _steps(job: Job, messages: Sequence[m.AnyMessage]) -> tuple[Step, ...]:
    """The whole steps among the messages, in order; of what was sent twice the newest counts."""
    forwards = {(x.step, x.micro): x for x in messages if isinstance(x, m.Forward)}
    backwards = {(x.step, x.micro): x for x in messages if isinstance(x, m.Backward)}
    replies = {x.answers: x for x in messages if isinstance(x, m.Forwarded | m.Gradient)}
    steps: dict[int, list[Exchange]] = {}
    for (step, micro), forward in sorted(forwards.items()):
        backward = backwards.get((step, micro))
        closing = replies.get((backward or forward).request)
        if isinstance(closing, m.Gradient):
            opening = replies.get(forward.request)
            exchange = _exchange(job, forward, opening if backward else None, backward, closing)
            steps.setdefault(step, []).append(exchange)
    return tuple(tuple(steps[step]) for step in range(1, len(steps) + 1) if step in steps)


def _exchange(
    job: Job, forward: m.Forward, forwarded: m.Reply | None, backward: m.Backward | None, gradient: m.Gradient
) -> Exchange:
    codecs = job.spec.link.codecs
    up = expected_of(job.body.input_values, forward.samples)
    first_target = len(forward.values) - forward.targets
    outputs: Values = ()
    output_gradients: tuple[Tensor | None, ...] = ()
    if isinstance(forwarded, m.Forwarded) and backward is not None:
        down = expected_of(job.body.output_values, forward.samples)
        outputs = _present(unpack(m.packed_in(forwarded), down, codecs=codecs["activations"]))
        back = unpack(m.packed_in(backward), down, codecs=codecs["gradients"])
        output_gradients = tuple(v if isinstance(v, Tensor) else None for v in back)
    arrived = unpack(m.packed_in(forward, last=first_target), up, codecs=codecs["activations"])
    returned = unpack(m.packed_in(gradient), up, codecs=codecs["gradients"])
    return Exchange(
        samples=forward.samples,
        share=share_of(forward.samples, forward.batch or forward.samples),
        activations=_present(arrived),
        outputs=outputs,
        output_gradients=output_gradients,
        gradients=tuple(v if isinstance(v, Tensor) else None for v in returned),
    )


def _evaluations(job: Job, messages: Sequence[m.AnyMessage]) -> tuple[Evaluated, ...]:
    codecs = job.spec.link.codecs["activations"]
    graph = job.body.program.document.eval
    replies = {x.answers: x for x in messages if isinstance(x, m.Evaluated)}
    return tuple(
        Evaluated(
            step=asked.step,
            activations=_present(
                unpack(m.packed_in(asked), expected_of(graph.inputs, asked.samples), codecs=codecs)
            ),
            outputs=_present(
                unpack(
                    m.packed_in(replies[asked.request]),
                    expected_of(graph.outputs, asked.samples),
                    codecs=codecs,
                )
            ),
        )
        for asked in messages
        if isinstance(asked, m.Eval) and asked.request in replies
    )


def _truth_of_evaluations(trainer: DeviceTrainer, messages: Sequence[m.AnyMessage]) -> Truth | None:
    """Return the test samples of each evaluation that `_evaluations` gives, in its order."""
    answered = {x.answers for x in messages if isinstance(x, m.Evaluated)}
    asked = [x for x in messages if isinstance(x, m.Eval) and x.request in answered]
    if trainer.tests is None or not asked:
        return None
    places: list[tuple[int, int]] = []
    for each in asked:  # a device asks for its batches in order
        places.append((sum(step == each.step for _, step in places), each.step))
    batches = [trainer.tests.batch(*place) for place in places]
    return Truth(
        inputs=tuple(inputs for inputs, _ in batches),
        targets=tuple(targets for _, targets in batches),
        indices=tuple(tuple(trainer.tests.indices(*place)) for place in places),
        canaries=frozenset(),
        members=0,
    )


def _present(values: Sequence[Tensor | int | None]) -> Values:
    return tuple(value for value in values if value is not None)


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
        exchange = _exchange(self._job, forward, None, None, gradient)
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
