"""A hostile worker, and a device that trains with it: it answers so that the device sends again and again.

All in one process, under virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from itertools import count
from pathlib import Path
from typing import TypeVar

from broker import decode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler
from broker.transport.base import Queue
from broker.transport.in_process import MemoryBroker, MemoryTransport
from broker.transport.sender import send_message
from broker.transport.topology import REPLY_TO, worker_queues
from device_agent.agent import Agent
from device_agent.config import AgentConfig
from server_worker.job_cache import DeviceJobs
from server_worker.store import SqliteStore
from spliteasy.errors import LinkError
from tests.device.served import toy_job
from tests.simulation import toy
from tests.simulation.clock import run_virtually

T = TypeVar("T")
EVERY_S = 0.02
"""The interval between two hostile answers."""
_fences = count(2)

Answer = Callable[[m.SessionRequest], m.Message]


def have_nothing(request: m.SessionRequest) -> m.Message:
    """Send all of it again."""
    return m.Have(answers=_asked(request), ranges=())


def busy_for_no_time(request: m.SessionRequest) -> m.Message:
    """Ask again at once."""
    return m.Busy(answers=_asked(request), retry_after_s=0.0, reason=m.new_nonce())


def missing(request: m.SessionRequest) -> m.Message:
    """The FORWARD never came."""
    return m.Missing(**_addressed(request, 1), step=1, missing="FORWARD")


def newer_owners(request: m.SessionRequest) -> m.Message:
    """Each reply is of an owner that knows nothing."""
    return m.Gradient(**_addressed(request, next(_fences)), step=9, durable_step=0)


def open_anew(request: m.SessionRequest) -> m.Message:
    """The store went back: all starts over."""
    return m.Reopen(
        session=request.session, answers=_asked(request), attempt=request.attempt, reason=m.new_nonce()
    )


ANSWERS: tuple[Answer, ...] = (have_nothing, busy_for_no_time, missing, newer_owners, open_anew)


@dataclass
class Storm:
    """The device's deeds during the storm."""

    sent: Counter[str] = field(default_factory=Counter)
    """Requests by kind."""
    nbytes: int = 0
    """Both directions."""
    answers: int = 0
    told: int = 0
    """Lines of its log."""


def storm(folder: Path, answer: Answer, *, seconds: float, metered: int | None = None) -> Storm:
    """Let a device train with a worker that answers every FORWARD and ASK so, for so long."""
    return run_virtually(_storm(folder, answer, seconds, metered))


async def _storm(folder: Path, answer: Answer, seconds: float, metered: int | None) -> Storm:
    broker, seen, store = MemoryBroker(), Storm(), SqliteStore(None, inline=True)
    await store.put_job(toy_job())
    jobs, assembler = DeviceJobs(store, shards=16), Assembler()
    server = broker.connect("worker")
    queues = worker_queues(16)
    await server.declare(*queues)
    last: list[tuple[m.SessionRequest, str]] = []

    async def send(reply_to: str, message: m.Message) -> None:
        seen.answers += 1
        with suppress(ExceptionGroup, LinkError):
            await send_message(server, reply_to, message, message_id=m.new_nonce(), to_queue=True)

    async def serve(queue: Queue) -> None:
        subscription = await server.subscribe(queue.name, prefetch=100)
        async for delivery in subscription:
            await subscription.ack(delivery)
            outcome = assembler.add("phone-1", delivery.body)
            if not isinstance(outcome, Assembled):
                continue
            request, reply_to = decode(outcome.body), delivery.headers[REPLY_TO]
            seen.sent[request.kind] += 1
            if isinstance(request, m.GetJob):
                await send(reply_to, await jobs.answer(request))
            elif isinstance(request, m.Open):
                fields = {"session": request.session, "answers": request.request, "attempt": request.attempt}
                await send(reply_to, m.Opened(**fields, fence=1, step=0, durable_step=0))
            elif isinstance(request, m.SessionRequest):
                last[:] = [(request, reply_to)]

    async def answer_for_ever() -> None:
        tick = asyncio.Event()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await tick.wait()
            for request, reply_to in last:
                await send(reply_to, answer(request))

    async def reach() -> MemoryTransport:
        return broker.connect("phone-1")

    def told(_: object) -> None:
        seen.told += 1

    agent = Agent(
        AgentConfig(job="toy", device="phone-1", data=toy.DATA, state=folder, metered=metered),
        connect=reach,
        compute=_inline,
        observe=told,
        clock=asyncio.get_running_loop().time,
        today=lambda: date(2026, 1, 5),
    )
    tasks = [asyncio.create_task(serve(queue)) for queue in queues]
    tasks += [asyncio.create_task(answer_for_ever()), asyncio.create_task(_ignored(agent))]
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    seen.nbytes = agent.link.bytes_up + agent.link.bytes_down
    return seen


async def _ignored(agent: Agent) -> None:
    await agent.run(asyncio.Event())


async def _inline(run: Callable[[], T]) -> T:
    return run()


def _asked(request: m.SessionRequest) -> str:
    return request.about if isinstance(request, m.Ask) else request.request


def _addressed(request: m.SessionRequest, fence: int) -> dict[str, object]:
    return {
        "session": request.session,
        "answers": _asked(request),
        "attempt": request.attempt,
        "fence": fence,
    }
