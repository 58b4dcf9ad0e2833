"""The envelope: any message comes back as it was; any other bytes are a WireError."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import broker
from broker import WireError, decode, decode_tensor, encode, encode_parts, encode_tensor
from broker.protocol.envelope import MINOR, VERSION, EnvelopeLimits
from broker.protocol.messages import AnyMessage, Evaluated, Forwarded, Value
from spliteasy import errors
from tests.broker.messages_for_tests import REPLY, carrier, examples, forge, fuzz_values, header_of, mutated

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def bits(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order: unlike numbers, they tell NaN from NaN and 0 from -0."""
    return tensor.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def same(a: Value, b: Value) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and a == b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any dtype, any bits, up to 5 dimensions (empty ones too), permuted, sliced or expanded."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=5))
    count = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=count, max_size=count))
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    tensor = (flat.remainder(2) if dtype is torch.bool else flat).clone().view(dtype).view(shape)
    tensor = tensor.permute(draw(st.permutations(list(range(len(shape))))))
    if draw(st.booleans()) and shape:
        tensor = tensor[:: draw(st.integers(1, 2))]
    if draw(st.booleans()):
        tensor = tensor.unsqueeze(0).expand(draw(st.integers(1, 3)), *tensor.shape)
    return tensor


VALUES = st.one_of(st.none(), st.integers(-(2**53) + 1, 2**53 - 1), tensors())


# What comes back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", examples((torch.randn(2, 3), None, 5)), ids=lambda m: m.kind)
def test_every_kind_comes_back(message: AnyMessage) -> None:
    again = decode(encode(message))
    assert type(again) is type(message)
    assert again.model_dump() == message.model_dump()
    assert len(again.values) == len(message.values)
    assert all(same(a, b) for a, b in zip(again.values, message.values, strict=True))


@given(st.lists(VALUES, max_size=6))
def test_values_come_back_bit_for_bit(values: list[Value]) -> None:
    message = carrier(*values)
    data = encode(message)
    assert b"".join(encode_parts(message)) == data
    for received in (data, bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        again = decode(received).values
        assert len(again) == len(values)
        assert all(same(a, b) for a, b in zip(again, values, strict=True))
        views = [value for value in again if isinstance(value, Tensor)]
        assert all(view.data_ptr() % view.element_size() == 0 for view in views)
    assert encode(decode(data)) == data


@given(tensors())
def test_tensors_keep_the_order_of_their_dimensions(tensor: Tensor) -> None:
    again = decode_tensor(encode_tensor(tensor))
    assert same(again, tensor)
    expected = tensor.clone(memory_format=torch.preserve_format)
    if tensor.numel():
        assert again.stride() == expected.stride()


def test_a_size_one_dimension_keeps_its_stride() -> None:
    """Torch's kernels read the memory format from it, and differ in the last bits."""
    tensor = torch.randn(4, 8, 1, 1).to(memory_format=torch.channels_last)
    assert tensor.stride() == (8, 1, 8, 8)
    assert decode_tensor(encode_tensor(tensor)).stride() == (8, 1, 8, 8)


def test_parameters_travel_as_their_values() -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    again = decode_tensor(encode_tensor(parameter))
    assert same(again, parameter.detach())
    assert not again.requires_grad


def test_nan_and_infinity_are_tensors_like_others() -> None:
    tensor = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    assert same(decode_tensor(encode_tensor(tensor)), tensor)


def test_decoded_tensors_are_views_of_the_buffer() -> None:
    buffer = bytearray(encode(carrier(torch.zeros(4), torch.zeros(2, 2).t().clone())))
    first, second = decode(buffer).values
    buffer[-64 - 16 : -64] = struct.pack("<4f", 1, 2, 3, 4)
    assert isinstance(first, Tensor)
    assert torch.equal(first, torch.tensor([1.0, 2, 3, 4]))
    assert isinstance(second, Tensor)
    with pytest.raises(BufferError):
        buffer.clear()  # while the tensors live, their memory must stay


def test_parts_are_the_tensors_own_memory() -> None:
    tensor = torch.zeros(1000)
    parts = encode_parts(carrier(tensor))
    tensor[0] = 1
    assert bytes(parts[-1][:4]) == struct.pack("<f", 1)


def test_the_layout_is_what_a_browser_expects() -> None:
    """The bytes are read by hand: JSON of a known length, then views at multiples of 64."""
    matrix = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.int32)
    data = encode(carrier(matrix, None, 5, torch.empty(0, 2), matrix.t()))
    magic, version, minor, length = struct.unpack_from("<4sHHI", data)
    assert (magic, version, minor) == (b"SPEZ", VERSION, MINOR)
    header = orjson.loads(data[12 : 12 + length])
    assert header["m"]["kind"] == "EVALUATED"
    start = -(-(12 + length) // 64) * 64
    assert header["v"] == [
        {"dtype": "int32", "shape": [2, 3], "offset": 0, "length": 24},
        None,
        5,
        {"dtype": "float32", "shape": [0, 2], "offset": 64, "length": 0},
        {"dtype": "int32", "shape": [3, 2], "strides": [1, 3], "offset": 64, "length": 24},
    ]
    numbers = struct.pack("<6i", 1, 2, 3, 4, 5, 6)
    assert data[start:] == numbers + bytes(40) + numbers


def test_wire_error_is_one_of_our_tree() -> None:
    assert broker.WireError is errors.WireError


# What can't be sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, dtype=torch.float8_e5m2), torch.zeros(2).to_sparse(), 2**53, -(2**53)],
    ids=["eight bits", "sparse", "too large", "too small"],
)
def test_what_has_no_form_on_the_wire_is_refused_by_the_sender(value: Value) -> None:
    with pytest.raises(WireError, match="no form on the wire"):
        encode(carrier(value))


# What is refused ------------------------------------------------------------------------------------

FIELDS = header_of(encode(carrier()))["m"]
FLOATS = {"dtype": "float32", "shape": [4], "offset": 0, "length": 16}


def slots(*values: Any) -> dict[str, Any]:
    return {"m": FIELDS, "v": list(values)}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "too short"),
        (b"SPEZ", "too short"),
        (b"XXXX" + encode(carrier())[4:], "not a message"),
        (b"SPEZ\x02" + encode(carrier())[5:], "wire version 2"),
        (struct.pack("<4sHHI", b"SPEZ", 1, 0, 2**32 - 1) + b"{}", "does not fit"),
        (forge(None, raw=b"\xff\xfe"), "not JSON"),
        (forge(None, raw=b"[" * 5000), "not JSON"),
        (forge(None, raw=b'{"m":{},"v":[NaN]}'), "not JSON"),
        (forge([]), "not a message's"),
        (forge({"m": FIELDS}), "not a message's"),
        (forge({**slots(), "x": 1}), "not a message's"),
        (forge({"m": None, "v": []}), "fields"),
        (forge({"m": {**FIELDS, "values": []}, "v": []}), "fields"),
        (forge({"m": {**FIELDS, "kind": "NONSENSE"}, "v": []}), "not a message of ours"),
        (forge({"m": {**FIELDS, "kind": ["EVALUATED"]}, "v": []}), "not a message of ours"),
        (forge({"m": {**FIELDS, "step": -1}, "v": []}), "EVALUATED.step"),
        (forge({"m": {**FIELDS, "step": "1"}, "v": []}), "EVALUATED.step"),
        (forge({"m": {**FIELDS, "extra": 1}, "v": []}), "EVALUATED.extra"),
        (forge({"m": {**FIELDS, "session": "Digits.phone"}, "v": []}), "EVALUATED.session"),
        (forge({"m": {**FIELDS, "session": "digits.phone\n"}, "v": []}), "EVALUATED.session"),
        (forge({"m": FIELDS, "v": {}}), "not a list"),
        (forge(slots(2**53)), "no form"),
        (forge(slots(1.5)), "not a tensor"),
        (forge(slots(True)), "not a tensor"),
        (forge(slots("x")), "not a tensor"),
        (forge(slots({**FLOATS, "extra": 1}), bytes(16)), "not a tensor"),
        (forge(slots({"dtype": "float32", "shape": [4]}), bytes(16)), "not a tensor"),
        (forge(slots({**FLOATS, "dtype": "complex32"}), bytes(16)), "unknown dtype"),
        (forge(slots({**FLOATS, "dtype": ["float32"]}), bytes(16)), "unknown dtype"),
        (forge(slots({**FLOATS, "shape": [-4]}), bytes(16)), "from 0 on"),
        (forge(slots({**FLOATS, "shape": [True]}), bytes(16)), "from 0 on"),
        (forge(slots({**FLOATS, "shape": 4}), bytes(16)), "not a list"),
        (forge(slots({**FLOATS, "shape": [1] * 9}), bytes(16)), "not a list"),
        (forge(slots({**FLOATS, "shape": [5]}), bytes(16)), "not 16 bytes long"),
        (forge(slots({**FLOATS, "shape": [2**53 - 1] * 8}), bytes(16)), "too large"),
        (forge(slots({**FLOATS, "shape": [0, 2**53 - 1], "length": 0})), "too large"),
        (forge(slots({**FLOATS, "length": 16.0}), bytes(16)), "are integers"),
        (forge(slots({**FLOATS, "offset": 4}), bytes(20)), "offset 4 where 0"),
        (forge(slots(FLOATS, FLOATS), bytes(16)), "offset 0 where 64"),
        (forge(slots(FLOATS, {**FLOATS, "offset": 16}), bytes(32)), "offset 16 where 64"),
        (forge(slots(FLOATS, {**FLOATS, "offset": 128}), bytes(144)), "offset 128 where 64"),
        (forge(slots(FLOATS), bytes(15)), "are not the"),
        (forge(slots(FLOATS), bytes(17)), "are not the"),
        (forge(slots(), bytes(1)), "are not the"),
        (forge(slots({**FLOATS, "strides": [2]}), bytes(16)), "do not fill"),
        (forge(slots({**FLOATS, "strides": [0]}), bytes(16)), "do not fill"),
        (forge(slots({**FLOATS, "strides": []}), bytes(16)), "do not fill"),
        (forge(slots({**FLOATS, "strides": [-1]}), bytes(16)), "from 0 on"),
        (forge(slots({**FLOATS, "shape": [2, 2], "strides": [1, 1]}), bytes(16)), "do not fill"),
        (forge(slots({**FLOATS, "shape": [2, 2], "strides": [1, 3]}), bytes(16)), "do not fill"),
        (forge(slots({"dtype": "bool", "shape": [2], "offset": 0, "length": 2}), b"\x01\x02"), "0 and 1"),
    ],
)
def test_malformed(data: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        decode(data)


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        (EnvelopeLimits(total_bytes=200), "limit of 200"),
        (EnvelopeLimits(header_bytes=100), "does not fit"),
        (EnvelopeLimits(values=1), "too many"),
        (EnvelopeLimits(ndim=1), "at most 1"),
    ],
)
def test_limits(limits: EnvelopeLimits, match: str) -> None:
    data = encode(carrier(torch.zeros(2, 2), None))
    decode(data)
    with pytest.raises(WireError, match=match):
        decode(data, limits)


def test_an_error_does_not_repeat_what_was_sent() -> None:
    secret = "x" * 100_000
    with pytest.raises(WireError) as caught:
        decode(forge({"m": {**FIELDS, "session": secret}, "v": []}))
    assert len(str(caught.value)) < 400
    assert "xxx" not in str(caught.value)


def test_a_message_is_not_a_tensor_nor_the_reverse() -> None:
    with pytest.raises(WireError):
        decode_tensor(encode(Forwarded(**REPLY, values=(torch.zeros(1),))))
    with pytest.raises(WireError):
        decode(encode_tensor(torch.zeros(1)))
    with pytest.raises(WireError):
        decode_tensor(forge({"m": None, "v": [1]}))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_message(data: bytes) -> None:
    with pytest.raises(WireError):
        decode(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(json_values, json_values, st.binary(max_size=80))
def test_arbitrary_json_is_no_message(fields: Any, values: Any, data: bytes) -> None:
    for header in (fields, {"m": fields, "v": values}, {"m": FIELDS, "v": [values]}):
        try:
            decode(forge(header, data))
        except WireError:
            continue
        assert header["v"] in ([], [values])


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), json_values, min_size=1))
def test_arbitrary_fields_are_a_message_or_a_wire_error(fields: dict[str, Any]) -> None:
    try:
        message = decode(forge({"m": {**FIELDS, **fields}, "v": []}))
    except WireError:
        return
    assert isinstance(message, Evaluated)


def fuzz(count: int, seed: int) -> int:
    """Decode `count` damaged messages; how many were refused. What was accepted must hold together."""
    rng = random.Random(seed)
    originals = [encode(message) for message in examples(fuzz_values())]
    refused = 0
    for number in range(count):
        data = mutated(rng.choice(originals), rng)
        try:
            message = decode(data)
            for value in message.values:
                if isinstance(value, Tensor):
                    value.clone()
            decode(encode(message))
        except WireError:
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, mutation {number}: {data!r}") from error
    return refused


def test_damaged_messages() -> None:
    refused = fuzz(4_000, seed=20260101)
    assert 2_000 < refused < 4_000, "damage must be noticed, and some of it must be harmless"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(8))
def test_damaged_messages_long(seed: int) -> None:
    assert 10_000 < fuzz(20_000, seed) < 20_000
