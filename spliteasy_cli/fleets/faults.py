"""Faults for `parity --faults SEED`: agents and workers of this process are killed, and links cut."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TypeVar

from broker import Transport
from broker.transport.base import Delivery
from broker.transport.faults import FAULTLESS, Fault, Verdict
from device_agent.agent import Agent, AgentResult
from device_agent.config import AgentConfig
from device_agent.link.link import Connect
from device_agent.observations import Observe
from server_worker.config import Trust, WorkerConfig
from server_worker.engine.local import LocalEngine
from server_worker.placement.shards import settle_shards
from server_worker.store import Store
from server_worker.worker import Worker
from spliteasy.errors import LinkError
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy_cli.support.embedded import ConnectAs, run_agent

T = TypeVar("T")
LIVES = 4
"""An agent or a worker is killed so often, less one; its last life goes on to the end."""
LIFE_S = 2.0
"""The mean of the seconds of a life that is to be cut short."""
GAPS_S = (0.0, 0.3, 1.0)
"""The seconds until what was killed is started again."""
CUT, TWICE, LATE = 0.002, 0.01, 0.02
"""The shares of frames that the in-process broker loses with their connection, has twice, and has late."""


class Faults:
    """The faults that a seed draws, and how many there were of each kind.

    They are drawn for each device, worker and connection apart, so that a seed says how long each life lasts,
    whatever the others do. What a fault hits at that moment depends on the machine.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._frames = self.drawn_for("frames")
        self.counts: Counter[str] = Counter()

    def drawn_for(self, what: str) -> random.Random:
        """Return what draws the faults of that device or worker."""
        return random.Random(f"{self._seed} {what}")

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        """Return what happens to a frame that is sent."""
        return self._verdict()

    def on_deliver(self, principal: str, queue: str, delivery: Delivery) -> Verdict:
        """Return what happens to a frame that arrives."""
        return self._verdict()

    def _verdict(self) -> Verdict:
        lot = self._frames.random()
        if lot < CUT:
            self.counts["link cut"] += 1
            return Verdict(fault=Fault.CUT)
        if lot < CUT + TWICE:
            self.counts["frame twice"] += 1
            return Verdict(fault=Fault.DUPLICATE)
        if lot < CUT + TWICE + LATE:
            self.counts["frame late"] += 1
            return Verdict(delay_s=self._frames.choice((0.01, 0.1, 0.5)))
        return FAULTLESS

    async def lives(
        self, kind: str, name: str, live: Callable[[ConnectAs], Awaitable[T]], connect: ConnectAs
    ) -> T:
        """Run `live` to its end, through the deaths that were drawn for it; what it raises is raised.

        It gets a way to connect whose connections are cut at its death.
        """
        rng = self.drawn_for(name)
        for _ in range(LIVES - 1):
            transports: list[Transport] = []
            life = asyncio.ensure_future(live(partial(_noted, connect, transports)))
            try:
                done, _ = await asyncio.wait({life}, timeout=rng.expovariate(1 / LIFE_S))
            finally:
                if not life.done():
                    life.cancel()
                    await asyncio.gather(life, return_exceptions=True)
            if done:
                return life.result()
            self.counts[f"{kind} killed"] += 1
            for transport in transports:
                with suppress(LinkError):
                    await transport.close()
            await asyncio.sleep(rng.choice(GAPS_S))
        return await live(connect)


async def _noted(connect: ConnectAs, transports: list[Transport], principal: str) -> Transport:
    transport = await connect(principal)
    transports.append(transport)
    return transport


async def run_agent_through(
    faults: Faults, config: AgentConfig, connect: Connect, *, stop: asyncio.Event, observe: Observe
) -> tuple[AgentResult, Agent]:
    """Run an agent that is killed and started again, to its end. What it raises is raised."""

    async def live(connect_as: ConnectAs) -> tuple[AgentResult, Agent]:
        return await run_agent(config, partial(connect_as, config.device), stop=stop, observe=observe)

    async def at(_principal: str) -> Transport:
        return await connect()

    return await faults.lives("agent", config.device, live, at)


@asynccontextmanager
async def workers_dying(
    faults: Faults, count: int, store: Store, connect: ConnectAs, *, trust: Trust
) -> AsyncIterator[None]:
    """Let `count` workers serve, which are killed and started again, while the context is entered."""
    stop = asyncio.Event()
    shards = await settle_shards(store, None)

    async def serve(name: str) -> None:
        async def live(connect_as: ConnectAs) -> None:
            compute = TorchThread(name)
            try:
                config = WorkerConfig(name=name, trust=trust, shards=shards)
                engine = LocalEngine(compute)
                await Worker(config, connect=partial(connect_as, name), store=store, engine=engine).run(stop)
            finally:
                compute.close()

        await faults.lives("worker", name, live, connect)

    async with asyncio.TaskGroup() as group:
        for number in range(1, count + 1):
            group.create_task(serve(f"worker-{number}"))
        try:
            yield
        finally:
            stop.set()
