"""The engine in this process: bodies in its memory or on an accelerator, one request of each at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import Any, TypeVar, cast

import torch

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
from spliteasy.runtime.accelerator import CPU, is_lost, lane
from spliteasy.runtime.torch_thread import Compute

R = TypeVar("R")


_frozen = FrozenTensors()
_loading = Lock()
_opened = itertools.count()


class LocalEngine:
    """Computes in torch's threads, or inline in a simulation: `compute` decides that."""

    def __init__(
        self,
        compute: Compute,
        processor: torch.device = CPU,
        *,
        lost: Callable[[RuntimeError], None] | None = None,
    ) -> None:
        """`processor`: where bodies lie and are computed. `lost` is called in the computing thread once that
        has failed for good; nothing that is computed after it can succeed."""
        self._compute = compute
        self.processor = processor
        self._lost = lost

    async def perform(self, request: EngineRequest[R]) -> R:
        return await self._compute(partial(self._perform, request))

    def _perform(self, request: EngineRequest[R]) -> R:
        try:
            return perform_now(request, self.processor)
        except RuntimeError as error:
            if self._lost is not None and self.processor != CPU and is_lost(error):
                self._lost(error)
            raise


def perform_now(request: EngineRequest[R], processor: torch.device = CPU) -> R:
    """The result of the request, computed in the calling thread. Bodies are opened on the processor."""
    number = 0 if processor == CPU else _lane_of(request)
    with lane(processor, number):
        return cast(R, _perform(request, processor, number))


def _lane_of(request: EngineRequest[Any]) -> int:
    """Return the lane of the request's body; that of a body that is opened is the next one."""
    while isinstance(request, Together):
        request = request.requests[0]
    if isinstance(request, OpenBody):
        return next(_opened)
    body = getattr(request, "body", None)
    return body.lane if isinstance(body, BodyTrainer) else 0


def _placed(job: Job, processor: torch.device) -> Job:
    return job if job.body.processor == processor else replace(job, body_or_none=job.body.on(processor))


def _perform(request: EngineRequest[Any], processor: torch.device, number: int) -> Any:
    match request:
        case Forward(body=body):
            return _own(body).forward(request)
        case Backward(body=body):
            return _own(body).backward(request)
        case Step(body):
            return _own(body).take_step()
        case Together(requests):
            return tuple(_perform(each, processor, number) for each in requests)
        case Abort(body):
            return _own(body).abort()
        case Evaluate(body):
            return _own(body).evaluate(request)
        case OpenBody(job, replica, device):
            return BodyTrainer(_placed(job, processor), replica, device=device, lane=number)
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
                return window_step(_placed(job, processor), record, bodies, before)
            return mean_bytes(job, record, bodies)
        case TakeEnds(job, record, bodies):
            return ends_mean(job, record, bodies)
        case Rebase(body):
            return _own(body).rebase(request)
        case Probe(job):
            return environment_of(_placed(job, processor))
        case LoadProgram(manifest, parts):
            job = _placed(Job.from_parts(manifest, parts), processor)
            with _loading:
                return _frozen.shared(job)
        case _:
            raise AssertionError(f"no engine request: {type(request).__name__}")


def _own(body: Body) -> BodyTrainer:
    assert isinstance(body, BodyTrainer), "the body was opened by another engine"
    return body
