"""The privacy budget that a device's training has spent, on disk before anything leaves the device.

A release is a step with its values: a step that is computed again to the same values (after a crash, say)
is the same release, and is not counted again; with other values it is another one. A crash between
counting and sending counts a release that did not happen, never the reverse.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from device_agent.state_folder import StateFolder
from spliteasy.errors import StateError
from spliteasy.privacy.defences.dp import PoissonBatches

REMEMBERED = 512
"""Steps whose releases are known again; one from before them counts as another."""

Part = Literal["head", "tail"]


class _Released(BaseModel):
    """Digests of one step's releases, by what they were computed from."""

    model_config = ConfigDict(extra="forbid", strict=True)
    head: list[str] = Field(default_factory=list)
    tail: list[str] = Field(default_factory=list)

    @property
    def count(self) -> int:
        return max(len(self.head), len(self.tail))


class _Ledger(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    spent: Annotated[int, Field(ge=0)] = 0
    recent: dict[str, _Released] = Field(default_factory=dict)


class Budget:
    """The releases of one training."""

    def __init__(self, state: StateFolder, poisson: PoissonBatches) -> None:
        """Raises StateError where the ledger is damaged or has gone."""
        self._state, self._poisson = state, poisson
        raw = state.budget
        try:
            self._ledger = _Ledger() if raw is None else _Ledger.model_validate_json(raw)
        except ValidationError as error:
            raise StateError(
                f"the privacy budget in {state.path} is damaged",
                hint=f"bring back a copy of the whole folder, or delete {state.path} to start over",
            ) from error
        if raw is None:
            self._save()

    @property
    def spent(self) -> int:
        """Releases so far: steps, as a rule."""
        return self._ledger.spent

    @property
    def epsilon(self) -> float:
        """Return what they have spent."""
        return self._poisson.spent(self.spent)

    def count(self, step: int, part: Part, digest: str) -> None:
        """Count a release; durable on return. Raises StateError where the budget would be exceeded."""
        recent = self._ledger.recent
        released = recent.setdefault(str(step), _Released())
        seen: list[str] = getattr(released, part)
        if digest in seen:
            return
        before = released.count
        seen.append(digest)
        more = released.count - before
        if self._ledger.spent + more > self._poisson.planned:
            seen.pop()
            raise StateError(
                f"step {step} would be release {self.spent + more} of this training, whose privacy budget is "
                f"for {self._poisson.planned}",
                hint="steps were taken again with other values; what is trained so far keeps to the budget, "
                "and can be merged",
            )
        self._ledger.spent += more
        while len(recent) > REMEMBERED:
            del recent[next(iter(recent))]
        self._save()

    def _save(self) -> None:
        self._state.save_budget(self._ledger.model_dump_json().encode())
