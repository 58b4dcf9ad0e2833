"""Training losses, computed here or reported by devices, wait here and are written every few seconds.

They are for curves only: what a dying worker has not written is lost, and no training depends on it.
"""

from __future__ import annotations

from broker.protocol import messages as m
from server_worker.replica.loaded_body import LoadedBody, StepResult
from server_worker.store import Store


class Losses:
    """Losses by session and step that the store does not have yet."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[int, float]] = {}

    def add(self, session: str, step: int, loss: float) -> None:
        self._waiting.setdefault(session, {})[step] = loss

    async def write(self, store: Store) -> None:
        """Raises StoreError; what had its turn is not tried again."""
        while self._waiting:
            session, losses = self._waiting.popitem()
            await store.add_losses(session, losses)


def step_loss(request: m.Forward | m.Backward, memory: LoadedBody, result: StepResult) -> float | None:
    """The step's loss: computed here, or reported by the device where the job lets it.

    None where the step passed without effect, and where no element of the batch has a label.
    """
    spec = memory.job.spec
    if result.skipped:
        return None
    if isinstance(request, m.Backward):
        return request.loss if spec.share_loss else None
    measured = [each.loss * each.share for each in result.micros if each.loss is not None]
    return sum(measured) if measured else None
