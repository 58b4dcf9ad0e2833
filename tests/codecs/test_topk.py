"""`topk`: what is sent and what is held back are the whole, and a restored memory goes on exactly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broker.protocol.envelope import decode_tensor, encode_tensor
from spliteasy.codecs import parse_codec
from spliteasy.errors import JobError
from tests.codecs.samples import decoded, floats, same_bits

ratios = st.sampled_from(["0.001", "0.02", "0.03125", "0.04", "0.5", "1"])


@given(ratios, floats(finite=True), st.integers(1, 4))
def test_error_feedback_conserves_the_sum_to_the_bit(ratio: str, tensor: torch.Tensor, steps: int) -> None:
    codec = parse_codec(f"topk:{ratio}")
    memory = None
    for step in range(steps):
        tensor = tensor.roll(step)
        due = tensor if memory is None else tensor + memory
        encoded = codec.encode(tensor, memory=memory)
        sent, memory = decoded(codec, encoded, tensor), encoded.memory
        assert memory is not None
        assert memory.stride() == tensor.stride()
        assert ((sent == 0) | (memory == 0)).all()
        assert torch.equal(sent + memory, due)


@given(ratios, floats(finite=True))
def test_the_largest_are_sent_and_no_more(ratio: str, tensor: torch.Tensor) -> None:
    codec = parse_codec(f"topk:{ratio}")
    encoded = codec.encode(tensor)
    sent = decoded(codec, encoded, tensor)
    count = math.ceil(float(ratio) * tensor.numel())
    assert encoded.parts[0].numel() == count
    assert encoded.memory is not None
    assert encoded.memory.abs().max() <= encoded.parts[0].abs().min()
    assert int((sent != 0).sum()) <= count
    assert encoded.nbytes <= count * (tensor.dtype.itemsize + 4)


def test_equal_magnitudes_are_sent_in_memory_order() -> None:
    codec = parse_codec("topk:0.5")
    tensor = torch.tensor([1.0, -1.0, 2.0, 1.0, 1.0, -1.0])
    assert decoded(codec, codec.encode(tensor), tensor).tolist() == [1.0, -1.0, 2.0, 0.0, 0.0, 0.0]
    assert decoded(codec, codec.encode(torch.zeros(6)), tensor).tolist() == [0.0] * 6


def test_nan_and_infinity_are_sent_first() -> None:
    codec = parse_codec("topk:0.5")
    tensor = torch.tensor([1e38, math.inf, -1e38, math.nan])
    sent = decoded(codec, codec.encode(tensor), tensor)
    assert sent.tolist()[:3] == [0.0, math.inf, 0.0]
    assert sent[3].isnan()


@pytest.mark.parametrize("ratio", ["0.01", "0.2"])
def test_a_run_resumed_with_its_memory_sends_the_same_bits(ratio: str) -> None:
    codec = parse_codec(f"topk:{ratio}")
    generator = torch.Generator().manual_seed(7)
    steps = [torch.randn(4, 5, 6, 7, generator=generator).permute(0, 3, 1, 2) for _ in range(8)]
    memory, expected, saved = None, [], b""
    for index, tensor in enumerate(steps):
        if index == 4:
            assert memory is not None
            saved = encode_tensor(memory)
        encoded = codec.encode(tensor, memory=memory)
        memory = encoded.memory
        expected.append(encoded)
    restored = decode_tensor(saved)
    for tensor, before in zip(steps[4:], expected[4:], strict=True):
        encoded = parse_codec(f"topk:{ratio}").encode(tensor, memory=restored)
        assert all(same_bits(a, b) for a, b in zip(encoded.parts, before.parts, strict=True))
        assert encoded.memory is not None
        restored = encoded.memory


def test_a_memory_of_another_dimension_order_is_the_same_memory() -> None:
    codec = parse_codec("topk:0.1")
    tensor, memory = torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    turned = memory.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    one, other = (codec.encode(tensor, memory=held) for held in (memory, turned))
    assert all(same_bits(a, b) for a, b in zip(one.parts, other.parts, strict=True))


@pytest.mark.parametrize("memory", [torch.zeros(3), torch.zeros(4, dtype=torch.float64)])
def test_a_memory_of_another_shape_or_dtype_is_refused(memory: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one memory for each shape"):
        parse_codec("topk:0.1").encode(torch.zeros(4), memory=memory)


@pytest.mark.parametrize(
    "text", ["topk", "topk:", "topk:0", "topk:1.5", "topk:-1", "topk:nan", "topk:x", "topk:inf"]
)
def test_a_bad_ratio_is_refused(text: str) -> None:
    with pytest.raises(JobError):
        parse_codec(text)
