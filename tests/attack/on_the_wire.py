"""Attacks that the worker must stop: what a device with an account of its own may publish."""

from __future__ import annotations

import asyncio
import os
import struct
import zlib
from typing import Any

import aiormq
import torch

from broker import encode
from broker.protocol import messages as m
from broker.protocol.frames import frame_checksum, frame_header, to_frames
from broker.protocol.messages import MAX_RANGES
from broker.protocol.rows import recall_of, row_names
from broker.transport.topology import DEFAULT_SHARDS, REPLY_TO, UPLINK, reply_queue, shard_of, uplink_key
from server_worker.admission.quotas import BURIED_BYTES, FIRST_CREDIT, OVERHEAD_BYTES
from tests.attack.hostile import ATTEMPT, Hostile, Undefended
from tests.simulation import toy

Properties = aiormq.spec.Basic.Properties


async def copy_to_another_key(attacker: Hostile) -> str:
    """CC and BCC: before RabbitMQ 4.0.3 they reach queues past the topic permissions."""
    said, victim = "", uplink_key("phone-999", 3)
    frame = next(iter(to_frames(encode(attacker.forward()), message_id=m.new_nonce())))
    connection = await aiormq.connect(attacker.arena.url(attacker.name))
    try:
        channel = await connection.channel()
        for header in ("CC", "BCC"):
            # Its own key leads to no queue of workers: what arrives comes by the copy.
            await channel.basic_publish(
                frame,
                exchange=UPLINK,
                routing_key=f"s.{attacker.name}.nowhere",
                properties=Properties(
                    user_id=attacker.name, headers={header: [victim], REPLY_TO: attacker.queue}
                ),
            )
            said = f"worker: {await attacker.dead.of(attacker.name)}"
    finally:
        await connection.close()
    return said


async def speak_without_a_name(attacker: Hostile) -> str:
    """Leave the user id out: the broker then vouches for nobody."""
    frame = next(iter(to_frames(encode(attacker.forward()), message_id=m.new_nonce())))
    connection = await aiormq.connect(attacker.arena.url(attacker.name))
    try:
        channel = await connection.channel()
        headers: dict[str, Any] = {REPLY_TO: attacker.queue}
        await channel.basic_publish(
            frame, exchange=UPLINK, routing_key=attacker.key, properties=Properties(headers=headers)
        )
        return f"worker: {await attacker.dead.of('')}"
    finally:
        await connection.close()


async def forge_the_session(attacker: Hostile) -> str:
    """Ask for a step of another device's session, under one's own key."""
    session = "toy.phone-999"
    key = uplink_key(attacker.name, shard_of(session, DEFAULT_SHARDS))
    await attacker.send(attacker.forward(session=session), key=key)
    said = await attacker.dead.of(attacker.name)
    digest = "0" * 64
    await attacker.send(m.Open(session=session, attempt=ATTEMPT, digest=digest, held=(0,)), key=key)
    await attacker.dead.of(attacker.name)
    if await attacker.arena.store.session(session) is not None:
        raise Undefended("the session was opened")
    return f"worker: {said}"


async def answer_to_another(attacker: Hostile) -> str:
    """Have the worker send the reply to another device."""
    victim = reply_queue("phone-999", m.new_nonce()).name
    attacker.queue = victim
    await attacker.send(attacker.forward())
    return f"worker: {await attacker.dead.of(attacker.name)}"


async def use_another_shard(attacker: Hostile) -> str:
    """Send one's requests where another worker would claim the session."""
    shard = (shard_of(attacker.session, DEFAULT_SHARDS) + 1) % 16
    await attacker.send(attacker.forward(), key=uplink_key(attacker.name, shard))
    said = await attacker.reply()
    if not isinstance(said, m.Reopen):
        raise Undefended(f"it was answered by {said.kind}")
    return f"worker: {said.reason}"


async def speak_as_a_worker(attacker: Hostile) -> str:
    """Send replies instead of requests."""
    await attacker.body(encode(m.Busy(answers=m.new_nonce(), retry_after_s=1.0)))
    return f"worker: {await attacker.dead.of(attacker.name)}"


async def malformed_frames(attacker: Hostile) -> str:
    """Noise, nothing, cut and altered frames."""
    (frame,) = to_frames(encode(attacker.forward()), message_id=m.new_nonce())
    flipped = frame[:70] + bytes([frame[70] ^ 1]) + frame[71:]
    said = ""
    for wrong in (b"", os.urandom(500), frame[:-1], frame + b"x", flipped, frame[:63]):
        await attacker.frame(wrong)
        said = await attacker.dead.of(attacker.name)
    return f"worker: {said}"


async def malformed_envelopes(attacker: Hostile) -> str:
    """Headers that lie about lengths, kinds, numbers and nesting, well framed."""
    body = encode(attacker.forward())
    deep = _altered(body, b'"samples":4', b'"samples":' + b"[" * 1000)
    said = ""
    for wrong in (
        b"\0",
        os.urandom(300),
        body[:40],
        body + b"\0" * 64,
        _altered(body, b'"shape":[4,5]', b'"shape":[4,6]'),
        _altered(body, b'"FORWARD"', b'"FORWORD"'),
        _altered(body, b'"samples":4', b'"samples":-1'),
        _altered(body, b'"samples":4', b'"samples":4,"eval":"1"'),
        deep,
        body[:8] + b"\xff\xff\xff\x7f" + body[12:],
    ):
        await attacker.body(wrong)
        said = await attacker.dead.of(attacker.name)
    return f"worker: {said}"


async def huge_shapes(attacker: Hostile) -> str:
    """Tensors that say they are of terabytes."""
    body = encode(attacker.forward())
    said = ""
    for shape in (b"[1048576,1048576]", b"[9007199254740991,9007199254740991]", b"[-4,-5]"):
        await attacker.body(_altered(body, b'"shape":[4,5]', b'"shape":' + shape))
        said = await attacker.dead.of(attacker.name)
    return f"worker: {said}"


async def tensors_that_do_not_fit(attacker: Hostile) -> str:
    """Wrong number, shape, dtype; integers for tensors."""
    await attacker.open()
    said = ""
    for values in (
        (torch.ones(4, 5, dtype=torch.float64),),
        (torch.ones(4, 5, dtype=torch.int64),),
        (torch.ones(4, 6),),
        (torch.ones(4, 5), torch.ones(4, 5)),
        (7,),
        (),
    ):
        said = await _error(attacker, attacker.forward(values=values))
    return said


async def claim_more_samples_than_the_job_has(attacker: Hostile) -> str:
    """FORWARD and EVAL of one sample more than the job's batches, and of a million."""
    await attacker.open()
    spec = toy.job(attacker.arena.variant).spec
    said, before = "", attacker.arena.store.waiting_bytes
    for samples in (spec.batch_size + 1, 1 << 20):
        values = (torch.ones(samples, 5),)
        said = await _error(attacker, attacker.forward(samples=samples, values=values))
        await _error(attacker, attacker.forward(batch=samples))
    samples = spec.evaluation.batch_size + 1
    for claimed, values in ((samples, (torch.ones(samples, 5),)), (1 << 20, (torch.ones(4, 5),))):
        evaluation = m.Eval(session=attacker.session, attempt=ATTEMPT, step=0, samples=claimed, values=values)
        await _error(attacker, evaluation)
    if attacker.arena.store.waiting_bytes > before + (1 << 20):
        raise Undefended("what was refused was stored")
    return said


async def name_rows_that_are_not_its_own(attacker: Hostile) -> str:
    """RECALL of rows that another device has sent, in its own session and in the other's."""
    await attacker.open()
    rows, digest = attacker.arena.worker.actors.rows, toy.job(attacker.arena.variant).digest
    theirs = attacker.forward(session="toy.phone-999", values=(torch.rand(4, 5),), keep=True)
    if not rows.keep(theirs, digest):
        raise Undefended("the worker keeps no rows")
    try:
        recall = _recall(attacker.forward(values=theirs.values, keep=True))
        await attacker.send(recall)
        reply = await attacker.reply()
        if not isinstance(reply, m.Missing) or reply.rows != ((0, 4),):
            raise Undefended(f"RECALL of another's rows was answered {reply.kind}")
        await attacker.send(recall.model_copy(update={"session": theirs.session}))
        return f"worker: MISSING; {await attacker.dead.of(attacker.name)}"
    finally:
        rows.forget(theirs.session)


async def name_more_rows_than_there_are(attacker: Hostile) -> str:
    """RECALL of one row again and again, more often than a batch has samples, and of rows of no kind."""
    await attacker.open()
    rows = attacker.arena.worker.actors.rows
    own = attacker.forward(values=(torch.rand(4, 5),), keep=True)
    await attacker.send(own)
    if not isinstance(await attacker.reply(), m.Forwarded):
        raise Undefended("FORWARD was not served")
    before, recall, said = rows.nbytes, _recall(own), ""
    names = recall.values[0]
    assert isinstance(names, torch.Tensor)
    for count in (5, 1 << 16):
        many = names[:1].expand(count, -1).contiguous()
        fields = {"samples": count, "values": (many, None), "forward": m.new_nonce()}
        said = await _error(attacker, recall.model_copy(update=fields))
    for values in ((), (names,), (names.float(), None), (names, None, None), (names, 7)):
        fields = {"values": values, "forward": m.new_nonce()}
        await _error(attacker, recall.model_copy(update=fields))
    if rows.nbytes > before:
        raise Undefended("what was refused was kept")
    return said


async def not_a_number(attacker: Hostile) -> str:
    """Gradients of NaN: they would spoil the body for ever."""
    await attacker.open()
    _, backward = await _forwarded(attacker, gradient=float("nan"))
    said = await _error(attacker, backward)
    await _stands_at(attacker, 0)
    return said


async def codecs_that_inflate(attacker: Hostile) -> str:
    """A zip bomb as an activation, and codecs that the job does not use."""
    await attacker.open()
    deflate = zlib.compressobj(9)
    bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(64)) + deflate.flush()
    packed = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    said = ""
    for codec in ("lossless", "topk:0.5", "int8", "nothing", "topk:1e9"):
        wrong = attacker.forward(values=(packed,), codec=codec, packing=(m.Packing(parts=1),))
        said = await _error(attacker, wrong)
    return said


async def replay_messages(attacker: Hostile) -> str:
    """Send a committed step again and again, as an eavesdropper or a broken link would."""
    await attacker.open()
    request, backward = await _forwarded(attacker, gradient=1.0)
    digests = set()
    for _ in range(5):
        await attacker.send(backward)
        gradient = await attacker.reply()
        if not isinstance(gradient, m.Gradient):
            raise Undefended(f"BACKWARD was answered {gradient.kind}")
        (values,) = gradient.values
        assert isinstance(values, torch.Tensor)
        digests.add(values.numpy().tobytes())
        await attacker.send(request)
        await attacker.reply()
    await _stands_at(attacker, 1)
    if len(digests) != 1:
        raise Undefended("one step gave several gradients")
    return "store: the step is committed once; the same reply again"


async def oversize(attacker: Hostile) -> str:
    """A message that says it has terabytes to come, and a frame that is larger than frames are."""
    (frame,) = to_frames(bytes(1 << 20), message_id=m.new_nonce(), chunk_bytes=1 << 20)
    await attacker.frame(_first_of_many(60 << 30))
    said = await attacker.dead.of(attacker.name)
    await attacker.frame(frame + bytes(14 << 20))
    await attacker.dead.of(attacker.name)
    return f"worker: {said}"


async def uploads_that_never_end(attacker: Hostile) -> str:
    """Begin message after message, and send their first and last frames only."""
    limits = attacker.arena.worker.config.uploads
    for _ in range(limits.sender_messages + 4):
        frames = list(to_frames(bytes(50_000), message_id=m.new_nonce(), chunk_bytes=10_000))
        await attacker.frame(frames[0])
        await attacker.frame(frames[-1])
    busy = 0
    while busy < 4:
        reply = await attacker.reply()
        if not isinstance(reply, m.Have | m.Busy):
            raise Undefended(f"answered {reply.kind}")
        busy += isinstance(reply, m.Busy)
    return f"worker: BUSY after {limits.sender_messages} unfinished messages of a device"


async def flood_with_messages(attacker: Hostile) -> str:
    """Thousands of small requests, as fast as the broker takes them."""
    await attacker.open()
    request = attacker.forward()
    ask = m.Ask(
        session=attacker.session,
        attempt=ATTEMPT,
        step=1,
        about=request.request,
        about_kind="FORWARD",
        forward=request.request,
    )
    frames = list(to_frames(encode(ask), message_id=m.new_nonce()))
    async with asyncio.TaskGroup() as tasks:
        for _ in range(1500):
            tasks.create_task(attacker.frame(frames[0]))
    seen = {(await attacker.reply()).kind for _ in range(1500)}
    if "BUSY" not in seen:
        raise Undefended(f"all 1500 were served: {seen}")
    return "worker: BUSY over the device's share"


async def leave_requests_behind(attacker: Hostile) -> str:
    """Begin a step under one attempt after the other, and end none of them."""
    sizes, digest = set(), toy.job(attacker.arena.variant).digest
    before = attacker.arena.store.waiting_bytes
    for number in range(1, 31):
        attempt = m.AttemptRef(number=number, nonce=m.new_nonce())
        await attacker.send(m.Open(session=attacker.session, attempt=attempt, digest=digest, held=(0,)))
        await attacker.reply()
        await attacker.send(attacker.forward(attempt=attempt))
        reply = await attacker.reply()
        if not isinstance(reply, m.Forwarded):
            raise Undefended(f"FORWARD was answered {reply.kind}")
        sizes.add(len(encode(attacker.forward(attempt=attempt))))
    left = attacker.arena.store.waiting_bytes - before
    if left > 4 * max(sizes):  # the device that trains beside has some of its own
        raise Undefended(f"{left} bytes of requests are left that nothing will commit")
    if not await attacker.arena.store.forget(attacker.session):
        raise Undefended("there was no session")
    return f"store: of 30 tries {max(sizes)} bytes were left, and none once the session was forgotten"


async def fetch_the_job_again_and_again(attacker: Hostile) -> str:
    """A small question for a large answer, as often as the broker takes it."""
    jobs = 0
    for _ in range(50):
        await attacker.send(m.GetJob(session=attacker.session), key=uplink_key(attacker.name, None))
    while isinstance(await attacker.reply(), m.Job):
        jobs += 1
    if jobs > attacker.arena.worker.config.quota.jobs + 10:
        raise Undefended(f"{jobs} answers of a whole job")
    return f"worker: BUSY after {jobs} answers; a job's parts are read once"


async def junk_as_fast_as_it_goes(attacker: Hostile) -> str:
    """Fill the broker's disk with dead letters of frames that nobody can read."""
    junk = os.urandom(64 << 10)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(1000):
            tasks.create_task(attacker.frame(junk))
    await attacker.open()  # behind all of them
    kept = attacker.dead.count(attacker.name)
    if not 0 < kept * len(junk) <= 2 * BURIED_BYTES:
        raise Undefended(f"{kept} dead letters of {len(junk)} bytes")
    return f"worker: {kept} dead letters of 1000, the others are dropped"


async def tiny_frames_for_large_answers(attacker: Hostile) -> str:
    """An upload full of holes, whose last frame asks again and again which frames are here."""
    body = encode(attacker.forward(values=(torch.ones(512, 5),)))
    frames = list(to_frames(body, message_id=m.new_nonce(), chunk_bytes=8))
    sent = received = 0
    for frame in (*frames[: 2 * MAX_RANGES : 2], *[frames[-1]] * 500):
        await attacker.frame(frame)
        sent += len(frame) + OVERHEAD_BYTES
    digest = toy.job(attacker.arena.variant).digest
    await attacker.send(m.Open(session=attacker.session, attempt=ATTEMPT, digest=digest, held=(0,)))
    kind = ""
    while kind != "OPENED":
        reply = await attacker.reply()
        kind = reply.kind
        received += len(encode(reply)) + OVERHEAD_BYTES
    if received > sent + 2 * FIRST_CREDIT:
        raise Undefended(f"{sent} bytes were answered by {received}")
    return f"worker: {sent >> 10} KiB were answered by {received >> 10} KiB"


async def _forwarded(attacker: Hostile, *, gradient: float) -> tuple[m.Forward, m.Backward]:
    """A FORWARD that was answered, and the BACKWARD with that gradient everywhere, which was not sent."""
    request = attacker.forward()
    await attacker.send(request)
    forwarded = await attacker.reply()
    if not isinstance(forwarded, m.Forwarded):
        raise Undefended(f"FORWARD was answered {forwarded.kind}")
    (output,) = forwarded.values
    assert isinstance(output, torch.Tensor)
    return request, m.Backward(
        session=attacker.session,
        attempt=ATTEMPT,
        step=1,
        forward=request.request,
        values=(torch.full_like(output, gradient),),
    )


async def _error(attacker: Hostile, request: m.Request) -> str:
    """The worker's refusal of a request. Raises Undefended where it is served."""
    await attacker.send(request)
    reply = await attacker.reply()
    if not isinstance(reply, m.Error):
        raise Undefended(f"{request.session} was answered {reply.kind}")
    return f"worker: {reply.code}: {reply.message}"


def _recall(forward: m.Forward) -> m.Recall:
    """The RECALL of a FORWARD, whose rows the worker is said to keep."""
    names = row_names(forward.values, forward.samples)
    assert names is not None
    recall = recall_of(forward, names, lambda _: True)
    assert recall is not None
    return recall


async def _stands_at(attacker: Hostile, step: int) -> None:
    meta = await attacker.arena.store.session(attacker.session)
    if meta is None or meta.committed != step:
        raise Undefended(f"the session is at step {meta.committed if meta else None}, not {step}")


def _altered(body: bytes, old: bytes, new: bytes) -> bytes:
    """An envelope with other words in its header, and all lengths right again."""
    (length,) = struct.unpack_from("<I", body, 8)
    header, data = body[12 : 12 + length], body[-(-(12 + length) // 64) * 64 :]
    assert old in header
    header = header.replace(old, new)
    start = body[:8] + struct.pack("<I", len(header)) + header
    return start + bytes(-len(start) % 64) + data


def _first_of_many(total: int) -> bytes:
    """A right first frame of a message of `total` bytes, in chunks of 1 MiB."""
    payload = bytes(1 << 20)
    header = frame_header(m.new_nonce(), 0, total, chunk_bytes=len(payload))
    return header + frame_checksum(header, payload) + payload


ATTACKS = (
    copy_to_another_key,
    speak_without_a_name,
    forge_the_session,
    answer_to_another,
    use_another_shard,
    speak_as_a_worker,
    malformed_frames,
    malformed_envelopes,
    huge_shapes,
    tensors_that_do_not_fit,
    claim_more_samples_than_the_job_has,
    name_rows_that_are_not_its_own,
    name_more_rows_than_there_are,
    not_a_number,
    codecs_that_inflate,
    replay_messages,
    oversize,
    uploads_that_never_end,
    flood_with_messages,
    fetch_the_job_again_and_again,
    junk_as_fast_as_it_goes,
    tiny_frames_for_large_answers,
    leave_requests_behind,
)
