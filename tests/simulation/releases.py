"""DP-SGD in a simulated world: a device has counted whatever it has released, before anybody else has it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from broker import decode
from broker.protocol import messages as m
from device_agent.state_folder import _CHECKSUM_BYTES, MAGIC
from server_worker.action import Steps
from server_worker.replica.replica import Replica
from server_worker.store import Attempt, Blob
from spliteasy.training.digest import strong_digest
from spliteasy.training.segment_trainer import tensors_of


@dataclass(slots=True)
class _Step:
    """The distinct values that left a device for one step."""

    heads: set[str] = field(default_factory=set)
    noises: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Releases:
    """What one device has released, as workers saw it, beside its ledger on the disk."""

    state: Path
    found: list[str] = field(default_factory=list)
    lost: bool = False
    """Its folder went back to an older copy: what it releases until it is there again was counted before."""
    _steps: defaultdict[int, _Step] = field(default_factory=lambda: defaultdict(_Step))

    def saw(self, request: m.Forward | m.Backward) -> None:
        """Judge a request that has arrived at a worker."""
        step = self._steps[request.step]
        if isinstance(request, m.Forward):
            step.heads.add(" ".join(map(strong_digest, tensors_of(request.values))))
        elif request.noise is not None:
            step.noises.add(request.noise)
        if not self.lost and self.spent < self.released:
            self.found.append(
                f"{request.session}: {self.released} steps had left the device, and {self.spent} were counted"
            )

    def judge(self, planned: int) -> None:
        """Judge the ledger at the end: equal values are one release, however often they were computed."""
        if self.released != planned:
            self.found.append(f"{self.released} steps were released, of {planned}")
        if self.spent != planned:
            self.found.append(f"{self.spent} steps were counted at the end, of {planned}")

    @property
    def released(self) -> int:
        return sum(max(len(step.heads), len(step.noises)) for step in self._steps.values())

    @property
    def spent(self) -> int:
        """What the disk says: a crash now would leave this."""
        try:
            raw = (self.state / "budget").read_bytes()
        except FileNotFoundError:
            return 0
        return int(json.loads(raw[len(MAGIC) + _CHECKSUM_BYTES :])["spent"])


@contextmanager
def watched(releases: Mapping[str, Releases]) -> Iterator[None]:
    """Show each session's requests to its `Releases` as a worker takes them up, whatever it logs of them."""
    log = Replica.log

    def seen(self: Replica, attempt: Attempt, step: int, index: int, raw: Blob) -> Steps[None]:
        if self.name in releases:
            request = decode(raw)
            assert isinstance(request, m.Forward | m.Backward)
            releases[self.name].saw(request)
        return log(self, attempt, step, index, raw)

    with mock.patch.object(Replica, "log", seen):
        yield
