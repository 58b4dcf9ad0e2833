"""Codecs by name. A new codec is a file with a subclass of `Codec`, one line here, and a test."""

from __future__ import annotations

from collections.abc import Callable

import torch

from spliteasy.codecs.codec import Codec
from spliteasy.codecs.identity import Identity
from spliteasy.codecs.int8 import Int8
from spliteasy.codecs.lossless import Lossless
from spliteasy.codecs.narrow import Narrow
from spliteasy.codecs.topk import TopK
from spliteasy.errors import JobError

_PLAIN: dict[str, Callable[[], Codec]] = {}
_WITH_NUMBER: dict[str, Callable[[float], Codec]] = {}


def register(name: str, make: Callable[[], Codec]) -> None:
    """Let `parse_codec(name)` return `make()`."""
    _PLAIN[name] = make


def codec_names() -> tuple[str, ...]:
    """As a person writes them."""
    return (*_PLAIN, *(f"{name}:RATIO" for name in _WITH_NUMBER))


def parse_codec(text: str) -> Codec:
    """The codec of that name: "int8", "topk:0.01". Raises `JobError` for anything else."""
    name, colon, number = text.partition(":")
    try:
        if not colon and name in _PLAIN:
            return _PLAIN[name]()
        if colon and name in _WITH_NUMBER:
            return _WITH_NUMBER[name](float(number))
    except ValueError as error:
        raise JobError(f"codec {text[:60]!r}: {error!s:.100}", hint="as in topk:0.01") from None
    raise JobError(f"no codec is named {text[:60]!r}", hint=f"there are {', '.join(codec_names())}")


register("fp32", Identity)
register("lossless", Lossless)
register("fp16", lambda: Narrow("fp16", torch.float16))
register("bf16", lambda: Narrow("bf16", torch.bfloat16))
register("int8", Int8)
_WITH_NUMBER["topk"] = TopK
