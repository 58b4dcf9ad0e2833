"""The equality: what each training came to, against the same training undisturbed in one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from device_agent.state_folder import StateFolder
from server_worker.replica.direct_body import DirectBody
from server_worker.store import Store
from spliteasy.training.reference import difference
from tests.chaos import toy
from tests.chaos.device import Training
from tests.simulation.toy import State


async def judge(store: Store, trainings: Sequence[tuple[Training, Path]]) -> dict[str, float]:
    """The largest difference of each session: head, tail, body, buffers and optimizers; 0.0 is bit for bit.

    `trainings` come with their state folders.
    """
    return {training.session: await _worst(store, training, folder) for training, folder in trainings}


async def _worst(store: Store, training: Training, folder: Path) -> float:
    expected = undisturbed(training, folder)
    with StateFolder(folder) as state:
        step = state.held()[-1]
        own = state.load_checkpoint(step)
        if not _counted(training, state):
            return float("inf")
    body, committed = await restored_body(store, training)
    if committed != step:
        return float("inf")
    return max(_difference(expected.own, own), _difference(expected.body, body))


def _counted(training: Training, state: StateFolder) -> bool:
    """Return whether the privacy budget, if any, counts each release once: not less, whatever was killed."""
    spec = toy.job(training.job).spec
    if spec.privacy.dp is None:
        return True
    assert state.budget is not None
    return int(json.loads(state.budget)["spent"]) == toy.STEPS_PER_EPOCH * spec.epochs


def undisturbed(training: Training, folder: Path) -> toy.Undisturbed:
    """Return what the training would have come to without a fault, under the codecs that its device chose."""
    with StateFolder(folder) as state:
        return toy.undisturbed(training.device, training.job, state.secret(), state.codecs)


async def restored_body(store: Store, training: Training) -> tuple[State, int]:
    """The body's state as a worker would load it now, and its step."""
    memory, step = await replayed(store, training)
    return memory.snapshot(), step


async def replayed(store: Store, training: Training) -> tuple[DirectBody, int]:
    """The body as a worker would load it now, and its step: the oldest snapshot and the log after it."""
    session = training.session
    meta = await store.session(session)
    assert meta is not None, f"the store has no session {session}"
    base = meta.snapshots[0]
    memory = DirectBody(toy.job(training.job), session)
    memory.restore(await store.read_snapshot(session, base), base)
    async for entry in store.read_log(session, after=base, upto=meta.committed):
        memory.replay(entry)
    return memory, meta.committed


def _difference(expected: State, found: State) -> float:
    """Infinite where tensors are missing, or differ in no more than their bits."""
    if expected.keys() != found.keys():
        return float("inf")
    worst = max((difference(found[name], expected[name]) for name in expected), default=0.0)
    same = all(torch.equal(_bits(found[name]), _bits(expected[name])) for name in expected)
    return worst if worst or same else float("inf")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
