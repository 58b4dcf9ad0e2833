"""Many sessions on one worker: neither a greedy device nor a slow one makes the others wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import TypeVar

import pytest
import torch

from broker import encode
from broker.protocol import messages as m
from broker.protocol.assembler import AssemblerLimits
from broker.protocol.frames import to_frames
from broker.transport.topology import DEFAULT_SHARDS, REPLY_TO, shard_of, uplink_key
from server_worker.engine.base import Engine, EngineRequest
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, Device, Server
from tests.worker.test_paused import backward_of
from tests.worker.test_refusals import forward

T = TypeVar("T")
BURST = 200
STEPS = 5


class Turns:
    """Counts what the engine computes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.taken = 0

    async def perform(self, request: EngineRequest[T]) -> T:
        self.taken += 1
        return await self._engine.perform(request)


def names_of_one_shard() -> Iterator[str]:
    """Devices whose requests go through the same queue."""
    shard = shard_of("toy.d-0", DEFAULT_SHARDS)
    return (name for n in count() if shard_of(f"toy.{(name := f'd-{n}')}", DEFAULT_SHARDS) == shard)


async def begin(device: Device) -> str:
    session = f"toy.{device.name}"
    request = m.Open(session=session, attempt=ATTEMPT, digest=toy.job(JOB).digest, held=(0,))
    assert isinstance(await device.ask(request), m.Opened)
    return session


async def publish(device: Device, request: m.Request, *, first: int, last: int | None) -> None:
    """Some of the frames of a request."""
    frames = list(to_frames(encode(request), message_id=request.request, chunk_bytes=100))
    for frame in frames[first:last]:
        key = uplink_key(device.name, shard_of(request.session, DEFAULT_SHARDS))
        await device.transport.publish(key, frame, headers={REPLY_TO: device.queue})


async def test_others_train_on_beside_a_greedy_device_and_a_slow_one(server: Server) -> None:
    """Counted is how many computations run between a request and its answer, not how long it takes."""
    names = names_of_one_shard()
    server.worker.engine = turns = Turns(server.worker.engine)
    async with (
        server.device(next(names)) as greedy,
        server.device(next(names)) as slow,
        server.device(next(names)) as modest,
    ):
        rest = forward(session=await begin(slow))
        await publish(slow, rest, first=0, last=-1)
        flooding, session = await begin(greedy), await begin(modest)
        waited: list[int] = []
        for step in range(1, STEPS + 1):
            for _ in range(BURST):
                values = (torch.ones(4, 5),)
                await greedy.send(m.Eval(session=flooding, attempt=ATTEMPT, step=0, samples=4, values=values))
            before = turns.taken
            request = forward(step, session=session)
            forwarded = await modest.ask(request)
            backward = backward_of(request, forwarded).model_copy(update={"session": session})
            assert isinstance(await modest.ask(backward), m.Gradient)
            waited.append(turns.taken - before)
        assert max(waited) < BURST / 2, "they take turns: a flood would come first else"
        await publish(slow, rest, first=-1, last=None)
        assert isinstance(await slow.reply(), m.Forwarded)
        answers = Counter[str]()
        while answers.total() < STEPS * BURST:
            reply = await greedy.reply()
            answers[reply.kind] += 1
            assert not isinstance(reply, m.Busy) or reply.retry_after_s > 0
        assert answers.keys() == {"EVALUATED", "BUSY"}, (
            "it gets what there is time for, and is told of the rest"
        )


class TestFullBudget:
    @pytest.fixture
    def uploads(self) -> AssemblerLimits:
        """Room for one FORWARD, not for two."""
        return AssemblerLimits(total_bytes=600)

    async def test_an_upload_beyond_the_budget_is_told_when_to_come_again(self, server: Server) -> None:
        async with server.device("phone-1") as first, server.device("phone-2") as second:
            one, other = [forward(session=await begin(device)) for device in (first, second)]
            assert 300 < len(encode(one)) < 600
            await publish(first, one, first=0, last=-1)
            await publish(second, other, first=0, last=None)
            busy = await second.reply()
            assert isinstance(busy, m.Busy)
            assert (busy.answers, busy.retry_after_s > 0) == (other.request, True)
            await publish(first, one, first=-1, last=None)
            assert isinstance(await first.reply(), m.Forwarded)
            await publish(second, other, first=0, last=None)
            assert isinstance(await second.reply(), m.Forwarded)
