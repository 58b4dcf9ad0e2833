"""The engine in this process: bodies in its memory, computed one request at a time."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar, cast

from server_worker.engine.base import (
    Abort,
    Backward,
    Body,
    EngineRequest,
    Evaluate,
    Forward,
    HandIn,
    LoadProgram,
    OpenBody,
    Probe,
    ReadWeights,
    Rebase,
    Restore,
    Step,
    TakeEnds,
    TakeMean,
    TakeSnapshot,
    Together,
)
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.engine.frozen import FrozenTensors
from server_worker.engine.probe import environment_of
from server_worker.engine.shared_body import ends_mean, window_step
from server_worker.rounds.ends import contribution, mean_bytes
from spliteasy.job import Job
from spliteasy.runtime.torch_thread import Compute

R = TypeVar("R")


_frozen = FrozenTensors()


class LocalEngine:
    """Computes in the torch thread, or inline in a simulation: `compute` decides that."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute

    async def perform(self, request: EngineRequest[R]) -> R:
        return await self._compute(partial(perform_now, request))


def perform_now(request: EngineRequest[R]) -> R:
    """The result of the request, computed in the calling thread."""
    return cast(R, _perform(request))


def _perform(request: EngineRequest[Any]) -> Any:
    match request:
        case Forward(body=body):
            return _own(body).forward(request)
        case Backward(body=body):
            return _own(body).backward(request)
        case Step(body):
            return _own(body).take_step()
        case Together(requests):
            return tuple(_perform(each) for each in requests)
        case Abort(body):
            return _own(body).abort()
        case Evaluate(body):
            return _own(body).evaluate(request)
        case OpenBody(job, replica, device):
            return BodyTrainer(job, replica, device=device)
        case Restore(body, blobs, step):
            return _own(body).restore(blobs, step)
        case TakeSnapshot(body):
            return _own(body).snapshot()
        case ReadWeights(body):
            return _own(body).weights()
        case HandIn(body, ready):
            return contribution(_own(body).averaged_part(), _own(body).job, ready)
        case TakeMean(job, record, bodies, before):
            if job.spec.fleet.shares_body:
                return window_step(job, record, bodies, before)
            return mean_bytes(job, record, bodies)
        case TakeEnds(job, record, bodies):
            return ends_mean(job, record, bodies)
        case Rebase(body):
            return _own(body).rebase(request)
        case Probe(job):
            return environment_of(job)
        case LoadProgram(manifest, parts):
            return _frozen.shared(Job.from_parts(manifest, parts))
        case _:
            raise AssertionError(f"no engine request: {type(request).__name__}")


def _own(body: Body) -> BodyTrainer:
    assert isinstance(body, BodyTrainer), "the body was opened by another engine"
    return body
