"""Portable graphs as JSON, the same for the same graph, and readable from JavaScript.

Arguments are null, booleans, numbers, texts and lists of them; what JSON lacks is an object with one
key: `{"ref": 7}` a value, `{"dtype": "float32"}`, `{"memory_format": "preserve_format"}`,
`{"float": "inf"}`, `{"complex": [0.0, 1.0]}`. Integers stay within ±2^53: an end that means "to the
end" is null.
"""

from __future__ import annotations

import math
from typing import Any

import orjson
import torch
from pydantic import ValidationError

from spliteasy.errors import PortableError
from spliteasy.graph import limits
from spliteasy.graph.document import INNER_DTYPE_NAMES, INNER_DTYPES, Document, Ref

MEMORY_FORMATS = {
    "contiguous_format": torch.contiguous_format,
    "preserve_format": torch.preserve_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_MEMORY_FORMAT_NAMES = {value: name for name, value in MEMORY_FORMATS.items()}
_TAGGED: dict[str, dict[str, Any]] = {
    "dtype": dict(INNER_DTYPES),
    "memory_format": MEMORY_FORMATS,
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
}


def document_to_json(document: Document) -> bytes:
    """Canonical bytes: equal documents give equal bytes."""
    return orjson.dumps(
        document.model_dump(mode="python", exclude_defaults=True)
        | {"format": document.format, "version": document.version},
        option=orjson.OPT_SORT_KEYS,
    )


def document_from_json(data: bytes) -> Document:
    """Parse and check the form. Raises `PortableError` for bytes that are not such a document."""
    if len(data) > limits.GRAPH_BYTES:
        raise PortableError(f"graph of {len(data)} bytes is over the limit of {limits.GRAPH_BYTES}")
    try:
        return Document.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        raise PortableError(f"graph is malformed at {where or 'the start'}: {first['msg']}") from None
    except (RecursionError, ValueError) as error:
        raise PortableError(f"graph is malformed: {type(error).__name__}") from None


def encode_argument(value: Any) -> Any:
    """A Python argument as JSON. Raises `PortableError` for what has no portable form."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Ref):
        return {"ref": value.slot}
    if isinstance(value, int):
        if abs(value) > limits.INTEGER:
            raise PortableError(f"integer {value} is beyond ±2^53")
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, torch.dtype) and value in INNER_DTYPE_NAMES:
        return {"dtype": INNER_DTYPE_NAMES[value]}
    if isinstance(value, complex):
        return {"complex": [encode_argument(value.real), encode_argument(value.imag)]}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _MEMORY_FORMAT_NAMES[value]}
    if isinstance(value, list | tuple):
        return [encode_argument(item) for item in value]
    raise PortableError(f"an argument of type {type(value).__name__} ({value!s:.60}) has no portable form")


def decode_argument(value: Any, depth: int = 0) -> Any:
    """Return the value that was encoded; references come back as `Ref`. Raises `PortableError`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > limits.INTEGER:
            raise PortableError("integer beyond ±2^53")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise PortableError("a bare infinity or NaN")
        return value
    if isinstance(value, str):
        if len(value) > limits.TEXT:
            raise PortableError(f"text of {len(value)} characters")
        return value
    if isinstance(value, list):
        if depth >= limits.NESTING or len(value) > limits.LIST_ITEMS:
            raise PortableError("an argument is nested too deeply or too long")
        return [decode_argument(item, depth + 1) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        return _decode_tagged(*next(iter(value.items())))
    raise PortableError("an argument of unknown form")


def _decode_tagged(tag: str, content: Any) -> Any:
    if tag == "ref" and type(content) is int and content >= 0:
        return Ref(content)
    if tag == "complex" and isinstance(content, list) and len(content) == 2:
        parts = [decode_argument(part, limits.NESTING) for part in content]
        if all(type(part) is float for part in parts):
            return complex(*parts)
    if tag in _TAGGED and isinstance(content, str) and content in _TAGGED[tag]:
        return _TAGGED[tag][content]
    raise PortableError(f"an argument of unknown form, tagged {tag[:40]!r}")
