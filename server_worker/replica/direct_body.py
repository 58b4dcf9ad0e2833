"""A body outside of a worker, to compare with: every request is computed at once, in the calling thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from broker import decode_tensor
from broker.protocol import messages as m
from server_worker.action import Steps
from server_worker.engine.base import EngineRequest
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.engine.local import perform_now
from server_worker.replica.loaded_body import LoadedBody, MicroResult, StepResult, open_body
from server_worker.store import LogEntry
from spliteasy.codecs.packer import Packed
from spliteasy.job import Job

T = TypeVar("T")


class DirectBody:
    """A body in the job's initial state, or as `restore` puts it; its methods are those of `LoadedBody`."""

    def __init__(self, job: Job, session: str) -> None:
        self.session = session
        self.loaded: LoadedBody = computed(open_body(job, session, session.partition(".")[2]))

    def restore(self, blobs: Mapping[str, bytes], step: int) -> None:
        computed(self.loaded.restore(blobs, step))

    def forward(self, request: m.Forward) -> StepResult | None:
        return computed(self.loaded.forward(request))

    def outputs(self, micro: int) -> Packed:
        return self.loaded.outputs(micro)

    def result(self, micro: int) -> MicroResult:
        return self.loaded.result(micro)

    def backward(self, request: m.Backward) -> StepResult | None:
        return computed(self.loaded.backward(request))

    def evaluate(self, request: m.Eval) -> Packed:
        return computed(self.loaded.evaluate(request))

    def averaged_part(self) -> dict[str, Tensor]:
        """Return what the body hands in at the end of a round."""
        body = self.loaded.body
        assert isinstance(body, BodyTrainer)
        return body.averaged_part()

    def replay(self, entry: LogEntry) -> StepResult | None:
        return computed(self.loaded.replay(entry))

    def snapshot(self) -> dict[str, Tensor]:
        return {name: decode_tensor(blob) for name, blob in computed(self.loaded.snapshot()).items()}


def computed(steps: Steps[T]) -> T:
    """The result of a handler that asks for nothing but computations."""
    result = None
    while True:
        try:
            action = steps.send(result)
        except StopIteration as done:
            value: T = done.value
            return value
        assert isinstance(action, EngineRequest), "only an engine is here"
        result = perform_now(action)
