"""One device: its agent is started again and again until its training is done, then the next one begins."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.emulator import LinkEmulator, Profile
from tests.chaos import toy
from tests.chaos.processes import Process
from tests.chaos.stack import Stack

_MBIT = 1_000_000 / 8
PROFILE = Profile(up_bytes_s=20 * _MBIT, down_bytes_s=50 * _MBIT, latency_s=0.004)
"""The profile of the device's link when nothing is wrong with it."""

AGAIN_S = 0.5
USER_ERROR = 2


@dataclass(frozen=True, slots=True)
class Training:
    """One device id's training, from nothing to the last step."""

    device: str
    job: str
    own_folder: bool = False
    """The device's state folder is this job's: the device trains others too."""

    @property
    def session(self) -> str:
        return f"{self.job}.{self.device}"


@dataclass(kw_only=True)
class Device:
    """A slot for trainings one after the other. `killed()` is how a fault gets at the agent."""

    slot: int
    stack: Stack
    link: LinkEmulator
    first: int
    """Number of the first device id."""
    every: int = 1
    """The distance from one device id to the next."""
    finished: list[Training] = field(default_factory=list)
    agent: Process | None = None
    training: Training | None = None
    bytes_up: int = 0
    """The bytes of all agents, up to the last step that each of them took."""
    port: int = 0
    """The port of the link that the agent is given at its next start; 0: the first."""
    lost_checkpoints: bool = False
    options: tuple[str, ...] = ()
    """Further options of its agent."""
    _agent_bytes: int = 0
    _gate: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> Path:
        """The state folder of the training at hand."""
        assert self.training is not None
        return self.state_of(self.training)

    def state_of(self, training: Training) -> Path:
        name = training.session if training.own_folder else training.device
        return self.stack.folder / f"{name}.state"

    async def run(self, more: Callable[[], bool]) -> None:
        """Train one device id after the other while `more()`; ends with a whole training."""
        while more():
            number = self.first + self.every * len(self.finished)
            if not await self.train(Training(f"phone-{number}", toy.JOBS[(number - 1) % len(toy.JOBS)])):
                return

    async def train(self, training: Training) -> bool:
        """Train, whatever happens meanwhile; whether it came to its end."""
        self.training, self.lost_checkpoints = training, False
        ended = await self._train()
        if ended:
            self.finished.append(training)
        return ended

    async def _train(self) -> bool:
        """Train, and return whether the training came to its end."""
        record = self.stack.record
        options: list[str] = []
        while True:
            async with self._gate:
                agent = self.agent = await self._start(options)
            code = await agent.wait()
            self.bytes_up += self._agent_bytes
            self._agent_bytes = 0
            said = " | ".join(agent.last_lines)
            options = []
            if code == 0:
                record.note(f"{self.session}: {said}")
                return True
            if code == -signal.SIGKILL:
                continue
            record.note(f"{self.session} ended with {code}: {said}")
            if code == 1 and ("error: the broker at" in said or "error: what answers at" in said):
                await asyncio.sleep(AGAIN_S)  # a first connection that did not come: start it again
            elif code == USER_ERROR and self.lost_checkpoints and "--takeover" in said:
                options = ["--takeover"]
            elif code == USER_ERROR and self.lost_checkpoints and "--restart" in said:
                options = ["--restart"]
            else:
                record.violate(f"{self.session} ended with {code}: {said}")
                return False

    @property
    def device_id(self) -> str:
        """The device id of the current training."""
        assert self.training is not None
        return self.training.device

    @property
    def session(self) -> str:
        """The session of the current training."""
        assert self.training is not None
        return self.training.session

    @property
    def was_killed(self) -> bool:
        """Return whether the agent ended by SIGKILL, not by itself a moment before."""
        return self.agent is not None and self.agent.code == -signal.SIGKILL

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[None]:
        """SIGKILL to the agent; while this is entered no other is started."""
        async with self._gate:
            if self.agent is not None:
                await self.agent.kill()
            yield

    def put_back(self, copy: Path) -> None:
        """Put an older copy of the state folder back: the device forgets what came after. Only if killed."""
        shutil.rmtree(self.state)
        shutil.copytree(copy, self.state)
        self.lost_checkpoints = True

    async def _start(self, options: list[str]) -> Process:
        training = self.training
        assert training is not None

        def said(line: dict[str, Any]) -> None:
            self._agent_bytes = max(self._agent_bytes, line.get("bytes_up", 0))
            self.stack.record.agent_said(self.slot, training.session, line)

        port = self.port or self.link.port
        return await self.stack.spliteasy(
            *("agent", "--job", training.job, "--device", training.device),
            *("--data", toy.DATA, "--state", self.state, "--log-level", "debug", *self.options, *options),
            name=training.device,
            on_line=said,
            environment={"SPLITEASY_BROKER": self.stack.broker_url(port)},
        )
