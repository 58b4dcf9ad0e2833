"""Names of codecs, and what a new one takes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from spliteasy.codecs import Codec, Encoded, Meta, codec_names, parse_codec
from spliteasy.codecs.codec import expect_flat, expect_meta, expect_parts
from spliteasy.codecs.layout import Layout
from spliteasy.errors import JobError
from tests.codecs.samples import decoded


@pytest.mark.parametrize("name", ["fp32", "lossless", "fp16", "bf16", "int8", "topk:0.01", "topk:1.0"])
def test_a_codec_is_named_as_it_is_parsed(name: str) -> None:
    assert parse_codec(name).name == name


def test_only_topk_has_a_memory_and_only_two_are_lossless() -> None:
    codecs = [parse_codec(name.replace("RATIO", "0.1")) for name in codec_names()]
    assert [codec.name for codec in codecs if codec.feedback] == ["topk:0.1"]
    assert [codec.name for codec in codecs if codec.lossless] == ["fp32", "lossless"]


@pytest.mark.parametrize("text", ["", "int4", "INT8", "int8:1", "fp16 ", "topk:0.1:2", "auto", "x" * 1000])
def test_unknown_names_are_refused_with_those_that_exist(text: str) -> None:
    with pytest.raises(JobError) as refused:
        parse_codec(text)
    assert len(str(refused.value)) < 300


class Halved(Codec):
    """Sends half of each number."""

    name = "halved"

    def pack(self, flat: Tensor, layout: Layout, seed: int | None, memory: Tensor | None) -> Encoded:
        return Encoded(parts=(flat / 2,))

    def unpack(self, parts: Sequence[Tensor], meta: Meta, layout: Layout, dtype: torch.dtype) -> Tensor:
        expect_meta(meta)
        (part,) = expect_parts(parts, 1)
        return expect_flat(part, layout.numel, dtype) * 2


def test_a_codec_of_ones_own_is_two_methods() -> None:
    codec = Halved()
    tensor = torch.randn(3, 4).t()
    encoded = codec.encode(tensor)
    assert torch.equal(encoded.parts[0], tensor.t().reshape(-1) / 2)
    assert encoded.meta == {"strides": [1, 4]}
    assert torch.equal(decoded(codec, encoded, tensor), tensor)
