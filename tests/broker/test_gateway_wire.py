"""The packets between devices and gateways: fixed bytes, and nothing hidden in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.gateway import wire
from broker.gateway.wire import FROM_DEVICE, FROM_GATEWAY, Failure, Kind, Packet, encode_packet, parse_packet
from spliteasy.errors import AccountGone, LinkDeferred, LinkError, LinkRefused, Unroutable, WireError

FRAME_BYTES = 1 << 20
EVERYTHING = FROM_DEVICE | FROM_GATEWAY


def test_the_bytes_of_a_packet_are_as_documented() -> None:
    packet = Packet(kind=Kind.PUBLISH, number=7, argument=0, text="s.phone-1.03", body=b"frame")
    assert encode_packet(packet).hex(" ", -4) == (
        "04000c00 07000000 00000000 00000000 732e7068 6f6e652d 312e3033 00000000 6672616d 65"
    )


@given(
    kind=st.sampled_from([Kind.PUBLISH, Kind.DELIVERY]),
    flag=st.integers(0, 1),
    number=st.integers(0, (1 << 32) - 1),
    text=st.text(max_size=200),
    body=st.binary(max_size=300),
)
def test_what_is_encoded_is_parsed(kind: Kind, flag: int, number: int, text: str, body: bytes) -> None:
    flag = flag if kind is Kind.DELIVERY else 0
    packet = Packet(kind=kind, flags=flag, number=number, text=text, body=body)
    message = encode_packet(packet)
    parsed = parse_packet(message, EVERYTHING, frame_bytes=FRAME_BYTES)
    assert (parsed.kind, parsed.flags, parsed.number, parsed.text) == (kind, flag, number, text)
    assert bytes(parsed.body) == body
    assert (len(message) - len(body)) % 8 == 0, "a typed array can lie over the body"


@given(st.binary(max_size=80))
def test_any_bytes_are_a_packet_or_an_error(message: bytes) -> None:
    try:
        packet = parse_packet(message, EVERYTHING, frame_bytes=FRAME_BYTES)
    except WireError:
        return
    assert encode_packet(packet) == message, "nothing is hidden in what is taken"


@pytest.mark.parametrize(
    ("packet", "change", "says"),
    [
        (Packet(kind=Kind.ACK, number=1, argument=2), (16, b"hidden"), "a body of 6 bytes"),
        (Packet(kind=Kind.ACK, number=1, argument=2), (12, b"\x01"), "bits where none belong"),
        (Packet(kind=Kind.ACK, number=1, argument=2), (1, b"\x01"), "bits where none belong"),
        (Packet(kind=Kind.DECLARE, number=1, text="abc"), (19, b"x"), "bits where none belong"),
        (Packet(kind=Kind.DECLARE, number=1, text="abc"), (8, b"\x01"), "an argument"),
        (Packet(kind=Kind.DECLARE, number=1, text="abc"), (2, b"\xff\xff"), "a text of 65535 bytes"),
        (Packet(kind=Kind.DECLARE, number=1, text="abc"), (16, b"\xff"), "not UTF-8"),
        (Packet(kind=Kind.END, number=1, argument=1), (0, b"\x00"), "kind 0"),
        (Packet(kind=Kind.END, number=1, argument=1), (0, b"\x10"), "kind 16"),
        (Packet(kind=Kind.PUBLISH, number=1, body=bytes(FRAME_BYTES + 1)), (0, b"\x04"), "at most 1048576"),
        (Packet(kind=Kind.HELLO, text="phone-1", body=bytes(1025)), (0, b"\x01"), "at most 1024"),
    ],
)
def test_what_is_no_packet_of_a_device_is_refused(
    packet: Packet, change: tuple[int, bytes], says: str
) -> None:
    place, put = change
    message = bytearray(encode_packet(packet))
    message[place : place + len(put)] = put
    with pytest.raises(WireError, match=says):
        parse_packet(bytes(message), FROM_DEVICE, frame_bytes=FRAME_BYTES)


@pytest.mark.parametrize(
    "error",
    [
        LinkError("lost"),
        LinkDeferred("later", hint="wait"),
        LinkRefused("no"),
        AccountGone("gone"),
        Unroutable("x" * 2000),
    ],
)
def test_an_error_keeps_its_kind_on_the_wire(error: LinkError) -> None:
    message = encode_packet(wire.failure_packet(Kind.FAILED, 3, error))
    told = wire.error_of(parse_packet(message, FROM_GATEWAY, frame_bytes=0))
    assert (type(told), told.message, told.hint) == (type(error), error.message[:1024], error.hint)


def test_an_error_of_a_newer_gateway_reads_as_a_lost_connection() -> None:
    packet = Packet(kind=Kind.FAILED, argument=max(Failure) + 1, text="new")
    assert type(wire.error_of(packet)) is LinkError
