"""A hostile sender may do anything to parts and meta: `WireError`, or a tensor of the expected form."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spliteasy.codecs import parse_codec
from spliteasy.errors import WireError
from tests.codecs.samples import FLOATS, NAMES, decoded, floats, seeds

garbage = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.lists(st.integers(-(2**70), 2**70) | st.none() | st.text(max_size=1), max_size=5)
)


@st.composite
def other_parts(draw: st.DrawFn, part: torch.Tensor) -> Any:
    """The part with other bytes, another size, shape, stride or dtype, or no plain tensor at all."""
    flat = part.flatten().clone(memory_format=torch.contiguous_format).as_strided((part.numel(),), (1,))
    if flat.numel():
        raw = flat.view(torch.uint8)
        raw[draw(st.integers(0, raw.numel() - 1))] = draw(st.integers(0, 255))
    return draw(
        st.sampled_from(
            [
                flat.view(part.shape),
                flat,
                flat[: draw(st.integers(0, flat.numel()))],
                flat[::2],
                torch.cat([flat, flat]),
                flat[None],
                part.expand(2, *part.shape),
                part.to(draw(st.sampled_from([*FLOATS, torch.uint8, torch.int32, torch.bool]))),
                part.to("meta"),
                part.to_sparse(),
                None,
                3,
                b"x",
            ]
        )
    )


def plain(part: object) -> bool:
    return isinstance(part, torch.Tensor) and (part.layout, part.device.type) == (torch.strided, "cpu")


@st.composite
def spoiled(draw: st.DrawFn, parts: list[Any], meta: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Parts and meta after one to three changes."""
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.integers(0, max(0, len(parts) - 1)))
        match draw(st.sampled_from(["part", "part", "drop", "double", "meta", "less"])):
            case "part":
                if where < len(parts) and plain(parts[where]):
                    parts = [*parts[:where], draw(other_parts(parts[where])), *parts[where + 1 :]]
            case "drop":
                parts = parts[:where] + parts[where + 1 :]
            case "double":
                parts = parts[: where + 1] + parts[where:]
            case "meta":
                key = draw(st.sampled_from([*meta, "strides", "form", "x"]))
                forms = st.sampled_from(["plain", "zeros", "planes", "zeros+planes"])
                meta = {**meta, key: draw(garbage | forms)}
            case "less":
                meta = dict(list(meta.items())[1:])
    return parts, meta


@settings(max_examples=200)
@given(st.data(), st.sampled_from(NAMES), floats(), st.none() | seeds)
def test_spoiled_messages_raise_only_wire_errors(
    data: st.DataObject, name: str, tensor: torch.Tensor, seed: int | None
) -> None:
    codec = parse_codec(name)
    encoded = codec.encode(tensor, seed=seed)
    parts, meta = data.draw(spoiled(list(encoded.parts), dict(encoded.meta)))
    shape, dtype = tuple(tensor.shape), tensor.dtype
    if data.draw(st.integers(0, 9)) == 0:
        shape, dtype = (
            data.draw(st.lists(st.integers(0, 9), max_size=5).map(tuple)),
            data.draw(st.sampled_from(FLOATS)),
        )
    try:
        back = codec.decode(parts, meta, shape=shape, dtype=dtype)
    except WireError:
        return
    assert (tuple(back.shape), back.dtype) == (shape, dtype)


I32, U8, BF16 = torch.int32, torch.uint8, torch.bfloat16
ONES = torch.ones(4)
DEFLATED = zlib.compressobj(1, zlib.DEFLATED, -15)
STREAM = torch.frombuffer(bytearray(DEFLATED.compress(bytes(100)) + DEFLATED.flush()), dtype=U8)

NOTHING = torch.tensor([0, 0, 0, 255, 255], dtype=U8)
"""A deflate block without content: however many of them, the stream stays right."""


@pytest.mark.parametrize(
    ("name", "parts", "meta", "shape"),
    [
        ("fp32", [], {}, (4,)),
        ("fp32", [ONES, ONES], {}, (4,)),
        ("fp32", [ONES], {"strides": [1]}, (4,)),
        ("fp32", [ONES.double()], {}, (4,)),
        ("fp32", [ONES[:1].expand(4)], {}, (4,)),
        ("fp16", [ONES], {}, (4,)),
        ("fp16", [torch.empty(4, dtype=torch.float16, device="meta")], {}, (4,)),
        ("fp16", [ONES.half().to_sparse()], {}, (4,)),
        ("fp16", [ONES.half().view(2, 2)], {}, (2, 2)),
        ("fp16", [ONES.half()], {"strides": [2, 1]}, (2, 2)),  # row-major goes without saying
        ("fp16", [ONES.half()], {"strides": [1, 1]}, (2, 2)),
        ("fp16", [ONES.half()], {"strides": [1, 1 << 80]}, (4, 1)),
        ("fp16", [ONES.half()], {"strides": [True, 2]}, (2, 2)),
        ("fp16", [ONES.half()], {"strides": None}, (2, 2)),
        ("int8", [ONES.char(), -ONES[:1].to(BF16)], {}, (4,)),
        ("int8", [ONES.char(), ONES[:1].to(BF16) * torch.inf], {}, (4,)),
        ("int8", [ONES.char(), ONES[:1].to(BF16) * 1e-38], {}, (4,)),
        ("int8", [ONES.char(), ONES.to(BF16)], {}, (4,)),
        ("topk:0.5", [ONES[:2], torch.tensor([0, 4], dtype=I32)], {}, (4,)),
        ("topk:0.5", [ONES[:2], torch.tensor([-1, 2], dtype=I32)], {}, (4,)),
        ("topk:0.5", [ONES[:2], torch.tensor([0, 1], dtype=I32)], {}, (4,)),  # a bitmap is smaller here
        ("topk:0.5", [ONES[:2], torch.tensor([0b0111], dtype=U8)], {}, (4,)),
        ("topk:0.5", [ONES[:2], torch.tensor([0b10001], dtype=U8)], {}, (4,)),
        ("topk:0.02", [torch.ones(2), torch.tensor([5, 5], dtype=I32)], {}, (100,)),
        ("topk:0.02", [torch.ones(2), torch.tensor([6, 5], dtype=I32)], {}, (100,)),
        ("topk:0.02", [torch.ones(2), torch.tensor([6, 100], dtype=I32)], {}, (100,)),
        ("topk:0.02", [torch.ones(2), torch.tensor([-6, 50], dtype=I32)], {}, (100,)),
        ("lossless", [ONES], {}, (4,)),
        ("lossless", [ONES], {"form": "best"}, (4,)),
        ("lossless", [ONES], {"form": ["plain"]}, (4,)),
        ("lossless", [ONES], {"form": "zeros"}, (4,)),
        ("lossless", [torch.tensor([0b11], dtype=U8), ONES], {"form": "zeros"}, (4,)),
        ("lossless", [torch.tensor([0b11111], dtype=U8), ONES], {"form": "zeros"}, (4,)),
        (
            "lossless",
            [STREAM, torch.ones(297, dtype=U8)],
            {"form": "planes"},
            (99,),
        ),  # one more than expected
        ("lossless", [STREAM, torch.ones(303, dtype=U8)], {"form": "planes"}, (101,)),  # one less
        ("lossless", [STREAM[:-1], torch.ones(300, dtype=U8)], {"form": "planes"}, (100,)),
        ("lossless", [torch.cat([STREAM, STREAM]), torch.ones(300, dtype=U8)], {"form": "planes"}, (100,)),
        (
            "lossless",
            [torch.cat([NOTHING] * 20 + [STREAM]), torch.ones(300, dtype=U8)],
            {"form": "planes"},
            (100,),
        ),
        ("lossless", [STREAM[:0], torch.ones(300, dtype=U8)], {"form": "planes"}, (100,)),
        ("lossless", [ONES.to(U8), torch.ones(300, dtype=U8)], {"form": "planes"}, (100,)),
    ],
)
def test_each_wrong_message_is_refused(
    name: str, parts: list[torch.Tensor], meta: dict[str, Any], shape: tuple[int, ...]
) -> None:
    with pytest.raises(WireError):
        parse_codec(name).decode(parts, meta, shape=shape, dtype=torch.float32)


def test_the_right_message_beside_the_wrong_ones_is_read() -> None:
    back = parse_codec("lossless").decode(
        [STREAM, torch.ones(300, dtype=U8)], {"form": "planes"}, shape=(100,), dtype=torch.float32
    )
    assert back.view(I32).tolist() == [0x010101] * 100


@pytest.mark.parametrize("name", NAMES)
def test_a_stride_that_is_never_walked_is_no_reason_to_refuse(name: str) -> None:
    codec, tensor = parse_codec(name), torch.tensor([0.5])
    encoded = codec.encode(tensor)
    strange = [torch.empty_strided((1,), (5,), dtype=part.dtype).copy_(part) for part in encoded.parts]
    back = codec.decode(strange, encoded.meta, shape=(1,), dtype=torch.float32)
    assert torch.equal(back, decoded(codec, encoded, tensor))


def test_a_deflate_bomb_is_refused_before_it_takes_memory() -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = bytearray(b"".join(coder.compress(bytes(1 << 20)) for _ in range(256)) + coder.flush())
    part = torch.frombuffer(bomb, dtype=U8)
    count = len(bomb) + 1
    low = torch.zeros(3 * count, dtype=U8)
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            parse_codec("lossless").decode(
                [part, low], {"form": "planes"}, shape=(count,), dtype=torch.float32
            )
        assert tracemalloc.get_traced_memory()[1] < 4 * count
    finally:
        tracemalloc.stop()
