"""Chunks whose size the device chose: of replies, and of uploads that go on in another size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from broker.protocol import messages as m
from broker.protocol.envelope import encode
from broker.protocol.frames import CHUNK_BYTES, MIN_CHUNK_BYTES, parse_frame, payload_digests, to_frames
from broker.transport.topology import DEFAULT_SHARDS, REPLY_TO, shard_of, uplink_key
from server_worker.admission.quotas import DeviceQuota
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, SESSION, Device, Server
from tests.worker.test_refusals import forward

SAMPLES = 4000
LARGE = toy.Variant(batch=SAMPLES)


@pytest.fixture
def variant() -> toy.Variant:
    return LARGE


@pytest.mark.parametrize(
    ("asked", "cut"),
    [(CHUNK_BYTES, CHUNK_BYTES), (9000, 9000), (100, MIN_CHUNK_BYTES), (4 * CHUNK_BYTES, CHUNK_BYTES)],
)
async def test_a_reply_is_cut_as_its_request_within_bounds(server: Server, asked: int, cut: int) -> None:
    """The device chose that size by its link; it can't have a worker cut finer or coarser than is fair."""
    async with server.device() as device:
        await device.open(LARGE)
        await device.send(forward(samples=SAMPLES, values=(torch.ones(SAMPLES, 5),)), chunk_bytes=asked)
        delivery = await anext(aiter(device.subscription))
        chunk = parse_frame(delivery.body)
        assert chunk.total > 2 * MIN_CHUNK_BYTES
        assert chunk.chunk_bytes == cut


def ask_about(request: m.Forward, **more: object) -> m.Ask:
    return m.Ask(
        session=SESSION,
        attempt=ATTEMPT,
        step=1,
        about=request.request,
        about_kind="FORWARD",
        forward=request.request,
        **more,  # type: ignore[arg-type]
    )


async def next_frame(device: Device) -> bytes:
    delivery = await anext(aiter(device.subscription))
    await device.subscription.ack(delivery)
    return bytes(delivery.body)


async def test_a_worker_tells_which_bytes_of_an_upload_are_here(server: Server) -> None:
    """A new connection found the link twice as fast: chunks are twice as large now."""
    async with server.device() as device:
        await device.open(LARGE)
        request = forward(samples=SAMPLES, values=(torch.ones(SAMPLES, 5),))
        frames = list(to_frames(encode(request), message_id=request.request, chunk_bytes=8192))
        for frame in frames[:5]:
            key = uplink_key(device.name, shard_of(SESSION, DEFAULT_SHARDS))
            await device.transport.publish(key, frame, headers={REPLY_TO: device.queue})
        await device.send(ask_about(request), chunk_bytes=16384)
        have = await device.reply()
        assert isinstance(have, m.Have)
        assert have.ranges == ((0, 5 * 8192),)
        await device.send(request, chunk_bytes=16384, skip=have.ranges)
        assert (await device.reply()).kind == "FORWARDED"


async def test_a_reply_goes_on_where_it_broke_off(server: Server) -> None:
    async with server.device() as device:
        await device.open(LARGE)
        request = forward(samples=SAMPLES, values=(torch.ones(SAMPLES, 5),))
        await device.send(request)
        whole = parse_frame(await next_frame(device))
        told = {"partial": (whole.message_id,), "partial_ranges": (((0, 10_000), (30_000, 30_100)),)}
        await device.send(ask_about(request, **told), chunk_bytes=9000)
        chunks = [parse_frame(await next_frame(device))]
        while chunks[0].message_id != whole.message_id:  # WORKING: it is not quite done with sending
            await device.send(ask_about(request, **told), chunk_bytes=9000)
            chunks = [parse_frame(await next_frame(device))]
        while not chunks[-1].last:
            chunks.append(parse_frame(await next_frame(device)))
        places = [(chunk.offset, chunk.end) for chunk in chunks]
        assert places[:4] == [(10_000, 19_000), (19_000, 28_000), (28_000, 30_000), (30_100, 39_100)]
        assert all(begin == end for (_, end), (begin, _) in pairwise(places[3:]))


@pytest.mark.parametrize("quota", [DeviceQuota(bytes_per_s=1.0, burst_s=300_000.0)])
async def test_looking_for_an_upload_under_another_id_costs_as_much_as_sending_it(server: Server) -> None:
    """Else one small message after the other would have the worker read hundreds of MB each."""
    async with server.device() as device:
        await device.open(LARGE)
        request = forward(samples=SAMPLES, values=(torch.ones(SAMPLES, 5),))
        body = encode(request)
        frames = list(to_frames(body, message_id=request.request, chunk_bytes=8192))
        for frame in frames[:5]:
            key = uplink_key(device.name, shard_of(SESSION, DEFAULT_SHARDS))
            await device.transport.publish(key, frame, headers={REPLY_TO: device.queue})
        digests = tuple(payload_digests([body], 8192, first=4))
        kinds = []
        for _ in range(6):
            again = request.model_copy(update={"request": m.new_nonce()})
            told = {"total": len(body), "block_bytes": 8192, "digests": digests}
            await device.send(ask_about(again, **told))
            kinds.append((await device.reply()).kind)
        assert kinds[0] == "HAVE" != kinds[-1]
