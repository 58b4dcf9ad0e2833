"""A trained device's half, read from its state folder, and where the other half can be asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from broker import connect
from broker.protocol import messages as m
from broker.transport.in_process import MemoryBroker
from device_agent.evaluation.evaluator import evaluation_outputs
from device_agent.state_folder import StateFolder
from device_agent.training.ends import initial_ends, job_key
from device_agent.training.trainer import HEAD, TAIL, end_trainers
from server_worker.config import Trust
from server_worker.store import open_store
from spliteasy.errors import StateError
from spliteasy.job import Job
from spliteasy.privacy.defences.transforms import CutTransforms
from spliteasy.training.segment_trainer import SegmentTrainer, tensors_of
from spliteasy_cli.commands.train import STORE_FILE
from spliteasy_cli.support.embedded import async_connect, workers_running
from spliteasy_cli.support.endpoints import blobs_folder, find_url
from spliteasy_cli.support.session_client import SessionClient, calling


@dataclass(frozen=True, slots=True)
class TrainedHalf:
    """Head and tail after `step`, on the device."""

    job: Job
    session: str
    attempt: m.AttemptRef
    step: int
    head: SegmentTrainer
    tail: SegmentTrainer | None
    transforms: CutTransforms

    def weights(self) -> dict[str, Tensor]:
        """Weights and buffers of head and tail, under the original model's names."""
        return {**self.head.weights(), **(self.tail.weights() if self.tail is not None else {})}

    async def predict(self, inputs: tuple[Tensor, ...], caller: SessionClient) -> tuple[Tensor, ...]:
        """The whole model's outputs in evaluation mode; the body's part is asked for."""
        outputs = await asyncio.to_thread(self.head.evaluate, inputs)
        wire, samples = self.head.eval_wire, inputs[0].shape[0]
        length = self.job.signature.length_of(inputs)
        order = self.transforms.order(outputs[:wire], purpose="prediction", step=self.step)
        sent = self.transforms.activations(outputs[:wire], purpose="prediction", step=self.step, order=order)
        request = m.Eval(
            session=self.session,
            attempt=self.attempt,
            step=self.step,
            samples=samples,
            length=length,
            values=sent,
        )
        reply = await caller.ask(request, m.Evaluated)
        finish = partial(
            evaluation_outputs, self.job, self.tail, samples=samples, length=length or 0, order=order
        )
        made = tensors_of(await asyncio.to_thread(finish, m.packed_in(reply), outputs[wire:]))
        return made[: len(self.job.signature.outputs)]  # behind them come the loss's own parameters


def read_half(state: StateFolder) -> TrainedHalf:
    """Return what the folder's newest checkpoint holds. Raises StateError, PortableError."""
    stored, binding, attempt, held = state.job_parts(), state.binding, state.attempt, state.held()
    if stored is None or binding is None or attempt is None or not held:
        raise StateError(
            f"{state.path} holds no training", hint="give the --state folder of an agent that has trained"
        )
    job = Job.from_parts(*stored)
    step = held[-1]
    tensors = state.load_checkpoint(step)
    key = job_key(state.secret(), device=binding.device, job=job.digest)
    ends = initial_ends(job, state, key, refuse_public=False)
    head, tail = end_trainers(job, device=binding.device, key=key, ends=ends)
    for trainer, prefix in ((head, HEAD), (tail, TAIL)):
        if trainer is not None:
            own = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
            trainer.load_state(own, step=step)
    return TrainedHalf(
        job=job,
        session=f"{job.name}.{binding.device}",
        attempt=attempt,
        step=step,
        head=head,
        tail=tail,
        transforms=CutTransforms(job.spec.privacy, key, head=job.head, tail=job.tail),
    )


def other_half(
    half: TrainedHalf, state: Path, broker: str | None
) -> AbstractAsyncContextManager[SessionClient]:
    """Return a client that asks workers for the body, or one of this process for a folder of `train`."""
    store_file = state.absolute().parent.parent / STORE_FILE
    if broker is None and store_file.exists():
        return _calling_embedded(half, f"sqlite:///{store_file}")
    return calling(partial(connect, find_url("broker", broker)), half.session, half.job.digest)


@asynccontextmanager
async def _calling_embedded(half: TrainedHalf, store_url: str) -> AsyncIterator[SessionClient]:
    connect_as = async_connect(MemoryBroker())
    store = await open_store(store_url, blobs=blobs_folder())
    device = half.session.partition(".")[2]
    try:
        async with (
            workers_running(1, store, connect_as, trust=Trust.ENROLLED),
            calling(partial(connect_as, device), half.session, half.job.digest) as caller,
        ):
            yield caller
    finally:
        await store.close()
