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

_PLAIN: dict[str, Callable[[], Codec]] = {
    "fp32": Identity,
    "lossless": Lossless,
    "fp16": lambda: Narrow("fp16", torch.float16),
    "bf16": lambda: Narrow("bf16", torch.bfloat16),
    "int8": Int8,
}
_WITH_RATIO: dict[str, Callable[[float], Codec]] = {"topk": TopK}


def codec_names() -> tuple[str, ...]:
    """Return the names of all codecs as a person writes them."""
    return (*_PLAIN, *(f"{name}:RATIO" for name in _WITH_RATIO))


def parse_codec(text: str) -> Codec:
    """Return the codec of that name: "int8", "topk:0.01". Raises `JobError` for anything else."""
    name, colon, ratio = text.partition(":")
    try:
        if not colon and name in _PLAIN:
            return _PLAIN[name]()
        if colon and name in _WITH_RATIO:
            return _WITH_RATIO[name](float(ratio))
    except ValueError as error:
        raise JobError(f"codec {text[:60]!r}: {error!s:.100}", hint="as in topk:0.01") from None
    raise JobError(f"no codec is named {text[:60]!r}", hint=f"there are {', '.join(codec_names())}")
