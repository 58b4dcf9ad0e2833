"""The vectors say what the code does, and a port that slips anywhere is told apart from a right one."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from broker import Assembled, Assembler, WireError, decode, encode
from broker.protocol import envelope, frames
from broker.protocol.ranges import ByteRanges
from broker.protocol.schemas import schemas
from device_agent.training import ends as device_ends
from spliteasy.privacy import numbers
from spliteasy.privacy.defences import label_dp, transforms
from spliteasy.runtime import randomness
from spliteasy.runtime.randomness import Key
from tests.vectors import draws, transcripts
from tests.vectors.book import FOLDER, VECTORS


def recorded(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def made(name: str) -> Any:
    return json.loads(json.dumps(VECTORS[name]()))


def differences(left: Any, right: Any, where: str = "") -> Iterator[str]:
    """The places where two trees differ, but for last bits of numbers that libraries round differently."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        if "within" in left and left["bytes"] != right["bytes"] and _are_close(left, right):
            left, right = {**left, "bytes": ""}, {**right, "bytes": ""}
        for key in left:
            yield from differences(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, pair in enumerate(zip(left, right, strict=True)):
            yield from differences(*pair, f"{where}/{index}")
    elif left != right or type(left) is not type(right):
        yield where


def _are_close(left: dict[str, Any], right: dict[str, Any]) -> bool:
    ours, theirs = (np.frombuffer(bytes.fromhex(each["bytes"]), each["dtype"]) for each in (left, right))
    return ours.shape == theirs.shape and bool(
        np.abs(ours - theirs).max() <= left["within"] * np.abs(ours).max()
    )


@pytest.mark.parametrize("name", VECTORS)
def test_the_code_makes_what_the_vectors_say(name: str) -> None:
    """Where this fails on purpose, the protocol changed: raise its version, and write the vectors again by
    `python -m tests.vectors`."""
    assert list(differences(recorded(name), made(name))) == []


@pytest.mark.parametrize("name", sorted(schemas()))
def test_the_schemas_are_those_of_the_code(name: str) -> None:
    assert (FOLDER / "schemas" / name).read_bytes() == schemas()[name]


def test_the_machine_does_what_the_transcripts_say() -> None:
    assert list(transcripts.differing(recorded("machine.json"))) == []


def test_every_message_has_a_schema_and_fits_it() -> None:
    definitions = json.loads(schemas()["message.json"])["$defs"]
    kinds = {
        part["properties"]["kind"]["const"]: part
        for part in definitions.values()
        if "kind" in part["properties"]
    }
    vectors = recorded("envelopes.json")["messages"]
    assert kinds.keys() == {vector["kind"] for vector in vectors}
    for vector in vectors:
        part = kinds[vector["kind"]]
        assert part["properties"].keys() >= vector["header"]["m"].keys() >= set(part["required"])


def test_envelopes_are_read_as_they_are_written() -> None:
    for vector in (*recorded("envelopes.json")["messages"], *recorded("envelopes.json")["values"]):
        data = bytes.fromhex(vector["bytes"])
        assert encode(decode(bytearray(data))) == data


def test_frames_give_the_body_that_they_were_cut_from() -> None:
    for vector in recorded("frames.json")["cut"]:
        body, assembler = bytes.fromhex(vector["body"]), Assembler()
        have = ByteRanges(vector["skip"])
        whole = frames.to_frames(body, message_id=vector["message_id"], chunk_bytes=1)
        before = [frame for place, frame in enumerate(whole) if have.covers(place, place + 1)]
        outcomes = [assembler.add("a", frame) for frame in before]
        outcomes += [assembler.add("a", bytes.fromhex(frame)) for frame in vector["frames"]]
        assert isinstance(outcomes[-1], Assembled)
        assert bytes(outcomes[-1].body) == body


def refused(name: str) -> list[Any]:
    return [pytest.param(bytes.fromhex(each["bytes"]), id=each["why"]) for each in recorded(name)["refused"]]


@pytest.mark.parametrize("data", refused("envelopes.json"))
def test_malformed_envelopes_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(bytearray(data))


@pytest.mark.parametrize("data", refused("frames.json"))
def test_malformed_frames_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        Assembler().add("a", data)


# What a port may get wrong ---------------------------------------------------------------------------

Patch = Callable[[pytest.MonkeyPatch], None]


def setting(owner: Any, name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(owner, name, value)


def _hashed(key: Key, text: str) -> Key:
    person = b"spliteasy-key"
    return Key(hashlib.blake2b(text.encode(), key=key._key, digest_size=32, person=person).digest())


def _at_without_types(self: Key, *parts: str | int) -> Key:
    return _hashed(self, "".join(f"s{len(str(part))}:{part}" for part in parts))


def _at_without_lengths(self: Key, *parts: str | int) -> Key:
    return _hashed(self, "".join(f"{'s' if isinstance(part, str) else 'i'}{part}" for part in parts))


def _short_stream(self: Key, nbytes: int) -> bytes:
    return hashlib.shake_128(b"spliteasy-stream" + self._key).digest(nbytes)


def _unit_of_all_bits(count: int, bits: int, key: Key) -> Any:
    return np.frombuffer(key.stream(4 * count), "<u4") * 2.0**-32


def _permutation_of_short_words(count: int, key: Key) -> Any:
    return np.argsort(np.frombuffer(key.stream(4 * count), "<u4"), kind="stable").astype(np.int64)


def _normal_sine_first(count: int, key: Key) -> Any:
    pairs = numbers._unit(2 * ((count + 1) // 2), 53, key).reshape(2, -1)
    radius, angle = np.sqrt(-2.0 * np.log1p(-pairs[0])), 2.0 * np.pi * pairs[1]
    return np.concatenate((radius * np.sin(angle), radius * np.cos(angle)))[:count]


def _seed_of_64_bits(*parts: str | int) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _words_backwards(words: bytes) -> Any:
    return _torch_state(b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4)))


def _plain_digest(values: Any) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for value in values:
        if isinstance(value, torch.Tensor):
            hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
            hasher.update(value.contiguous().view(torch.uint8).numpy().tobytes())
        else:
            hasher.update(repr(value).encode())
    return hasher.hexdigest()


def _checksum_payload_first(header: bytes, *pieces: Any) -> bytes:
    return struct.pack("<I", frames.crc32(header, frames.crc32(b"".join(pieces))))


def _gaps_to_the_end(self: ByteRanges, end: int) -> Any:
    """Everything after the first gap is sent again."""
    for begin, _ in _gaps(self, end):
        yield begin, end
        return


_torch_state, _gaps = randomness.torch_state, ByteRanges.gaps
_frame_header, _job_key = frames.frame_header, device_ends.job_key
SLIPS: dict[str, tuple[str, Patch]] = {
    "big-endian frame headers": (
        "frames.json", setting(frames, "_HEADER", struct.Struct(">4sB3s8sQQII20s"))),
    "frame checksums over the payload first": (
        "frames.json", setting(frames, "frame_checksum", _checksum_payload_first)),
    "no checksum of the body": (
        "frames.json",
        setting(frames, "frame_header", lambda *a, **k: _frame_header(*a, **{**k, "body_crc": 0}))),
    "sending what the other side has": ("frames.json", setting(ByteRanges, "gaps", _gaps_to_the_end)),
    "frames of version 1": ("frames.json", setting(frames, "VERSION", 1)),
    "tensors at multiples of 8": ("envelopes.json", setting(envelope, "ALIGNMENT", 8)),
    "integers as text": ("envelopes.json", setting(envelope, "_checked_int", str)),
    "no strides": ("envelopes.json", setting(envelope, "_row_major", lambda shape: ANY)),
    "no minor version": ("envelopes.json", setting(envelope, "MINOR", 0)),
    "bfloat16 told as float16": (
        "envelopes.json",
        setting(envelope, "_NAMES", {**envelope._NAMES, torch.bfloat16: "float16"})),
    "keys that take 1 for '1'": ("keys.json", setting(Key, "at", _at_without_types)),
    "keys without lengths": ("keys.json", setting(Key, "at", _at_without_lengths)),
    "streams of SHAKE-128": ("keys.json", setting(Key, "stream", _short_stream)),
    "seeds of 64 bits": ("keys.json", setting(draws, "seed_of", _seed_of_64_bits)),
    "uniform numbers of 32 bits": ("numbers.json", setting(numbers, "_unit", _unit_of_all_bits)),
    "sine before cosine": ("numbers.json", setting(numbers, "normal", _normal_sine_first)),
    "one stream for all chunks": ("numbers.json", setting(numbers, "CHUNK", 1 << 20)),
    "orders by 32-bit words": ("numbers.json", setting(draws, "permutation", _permutation_of_short_words)),
    "a device that forgets its name": (
        "device.json",
        setting(draws, "job_key", lambda secret, *, device, job: _job_key(secret, device="", job=job))),
    "masks from big-endian words": ("device.json", setting(randomness, "torch_state", _words_backwards)),
    "noise that does not depend on the tensor": (
        "device.json", setting(transforms, "strong_digest", lambda tensor: "")),
    "clipping of the batch in place of samples": (
        "device.json",
        setting(transforms, "clipped", lambda value, most: value * (most / value.norm()).clamp(max=1))),
    "labels kept too often": ("device.json", setting(label_dp, "keep_probability", lambda *a: 0.9)),
    "a digest of the plain bytes": ("digests.json", setting(draws, "digest_of", _plain_digest)),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_of_a_port_is_noticed(slip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, plant = SLIPS[slip]
    plant(monkeypatch)
    assert list(differences(recorded(name), made(name))) != []
