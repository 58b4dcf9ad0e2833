"""Versions side by side: what a newer minor version adds to any message is ignored, at any depth."""

from __future__ import annotations

import struct

import orjson
import pytest
import torch

from broker import WireError, decode, encode
from broker.protocol.envelope import MINOR, VERSION
from broker.protocol.messages import AnyMessage
from tests.broker.messages_for_tests import examples, header_of
from tests.next_version import with_more


def written_by(minor: int, message: AnyMessage) -> bytes:
    """The message with more fields than it has, as that minor version says it."""
    header = header_of(encode(message))
    fields = {
        # what a codec adds is the codec's own: it is no record
        name: value if name == "packing" else with_more(value)
        for name, value in header["m"].items()
    }
    text = orjson.dumps({"m": {**fields, "of_the_next_version": {"a": 1}}, "v": header["v"]})
    data = encode(message)
    old_start = 12 + len(orjson.dumps(header))
    body = data[-(-old_start // 64) * 64 :]
    start = 12 + len(text)
    padding = bytes(-(-start // 64) * 64 - start) if body else b""
    return struct.pack("<4sHHI", b"SPEZ", VERSION, minor, len(text)) + text + padding + body


@pytest.mark.parametrize("message", examples(), ids=lambda message: message.kind)
def test_an_older_side_reads_what_it_knows(message: AnyMessage) -> None:
    read = decode(written_by(MINOR + 1, message))
    assert type(read) is type(message)
    assert read.model_dump() == message.model_dump()
    for one, other in zip(read.values, message.values, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    with pytest.raises(WireError, match="not a message of ours"):
        decode(written_by(MINOR, message))


def test_another_version_says_which_side_to_upgrade() -> None:
    data = bytearray(encode(examples()[0]))
    struct.pack_into("<H", data, 4, VERSION + 1)
    with pytest.raises(WireError, match=rf"wire version {VERSION + 1}.*upgrade the older side"):
        decode(bytes(data))


def test_who_wrote_before_these_fields_is_read_and_who_knows_none_of_them_can_skip_them() -> None:
    """The minor version tells an older side that it may skip what it does not know."""
    before = {"OPEN": {"agent", "total_steps"}, "BACKWARD": {"loss"}}
    for message in (each for each in examples() if each.kind in before):
        header = header_of(encode(message))["m"]
        assert before[message.kind] <= header.keys(), "the example has them"
        older = message.model_copy(update=dict.fromkeys(before[message.kind]))
        data = bytearray(encode(older))
        struct.pack_into("<H", data, 6, 0)
        assert decode(bytes(data)).model_dump() == older.model_dump()
    assert MINOR >= 1
