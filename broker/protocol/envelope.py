"""The envelope: one message as bytes, the same over every transport.

    0   4   magic "SPEZ"
    4   2   version (u16, little-endian like all numbers here)
    6   2   minor version of who wrote it (u16)
    8   4   length of the header in bytes (u32)
    12  …   header: UTF-8 JSON {"m": message fields, "v": [slot, …]}
            zeros up to the next multiple of 64: there the data begins
    …   …   the tensors' bytes, little-endian, in the order of the slots, each at a multiple of 64
            (zeros between), nothing after the last

A slot is `null` (an absent gradient), an integer within ±(2^53 − 1), or a tensor: {"dtype": "float32",
"shape": [2, 3], "offset": 0, "length": 24} with `offset` from the beginning of the data. "strides" (in
elements) is there where the bytes are not in row-major order: a permuted tensor travels as it lies in
memory, because a contiguous copy would change the last bits of what is computed from it.

**Versions.** Sides of one version understand each other, whatever their minor versions: a newer minor version
may only add fields that are optional, with a default that means what was meant without them. An older side
ignores them; where the writer is not newer, an unknown field is refused. A new kind of message may be sent
only to who has shown, by its own messages, that it knows it.

`encode` copies each tensor once; `encode_parts` not at all. `decode` copies nothing: its tensors are
views of the buffer. They share its memory, so treat them as read-only where something else reads it.
"""

from __future__ import annotations

import math
import struct
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import torch
from pydantic import ValidationError
from torch import Tensor

from broker.protocol.messages import AnyMessage, Message, Value, from_header, to_header
from broker.transport.base import Frame
from spliteasy.codecs.layout import is_dense
from spliteasy.errors import WireError

MAGIC = b"SPEZ"
VERSION = 1
MINOR = 5
"""0: the first.
1: the agent's version and total steps in OPEN, the loss in BACKWARD, the operator's signature in JOB, the
   trace of a step in its requests.
3: the digest of the body's outputs in BACKWARD.
4: the noise of a private step in BACKWARD.
5: RECALL, which a device sends to a worker that has said `kept`; `keep` in FORWARD, the rows in MISSING;
   the accuracy in READY, the best state so far in FORWARD; the length of samples in FORWARD and
   EVAL.
"""
ALIGNMENT = 64
MAX_INT = 2**53 - 1
"""JavaScript reads integers exactly up to here."""

_PREFIX = struct.Struct("<4sHHI")
_DTYPES: dict[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    )
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_TENSOR_KEYS = {"dtype", "shape", "offset", "length"}

assert sys.byteorder == "little", "tensors travel as they lie in memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvelopeLimits:
    """The limits of `decode`, which are checked before anything is allocated."""

    header_bytes: int = 8 << 20
    total_bytes: int = 1 << 30
    values: int = 1 << 16
    ndim: int = 8


DEFAULT_LIMITS = EnvelopeLimits()
SNAPSHOT_LIMITS = EnvelopeLimits(total_bytes=1 << 40)
"""Limits for tensors of our own store, where a single weight may be large."""


def encode(message: Message) -> bytes:
    """The message as bytes. Raises `WireError` for a value that has no form on the wire."""
    return b"".join(encode_parts(message))


def encode_parts(message: Message) -> list[Frame]:
    """`encode`, as the list of buffers whose concatenation it is: the tensors' own memory, not copied.

    The message's tensors must not change until the parts have been used.
    """
    return _pack(to_header(message), message.values)


def decode(data: Frame, limits: EnvelopeLimits = DEFAULT_LIMITS) -> AnyMessage:
    """Return the message in `data`; its tensors are views of `data`. Raises `WireError`, and nothing else."""
    header, values, newer = _unpack(data, limits)
    if not isinstance(header, dict) or "values" in header:
        raise WireError("the message's fields are not an object of ours")
    try:
        return from_header(header, values, ignore_unknown=newer)
    except ValidationError as error:
        raise WireError(_first_fault(error)) from None


def encode_tensor(tensor: Tensor) -> bytes:
    """One tensor in the same layout, with its dimension order: for snapshots."""
    return b"".join(_pack(None, (tensor,)))


def decode_tensor(data: Frame, limits: EnvelopeLimits = SNAPSHOT_LIMITS) -> Tensor:
    """Return the tensor of `encode_tensor`, as a view of `data`. Raises `WireError`."""
    header, values, _ = _unpack(data, limits)
    if header is not None or len(values) != 1 or not isinstance(values[0], Tensor):
        raise WireError("not a single tensor")
    return values[0]


# Encoding -----------------------------------------------------------------------------------------


def _pack(header: dict[str, Any] | None, values: Sequence[Value]) -> list[Frame]:
    slots: list[Any] = []
    buffers: list[Frame] = []
    end = 0
    for value in values:
        if not isinstance(value, Tensor):
            slots.append(_checked_int(value) if value is not None else None)
            continue
        slot, buffer = _pack_tensor(value)
        offset = _aligned(end)
        slots.append({**slot, "offset": offset, "length": len(buffer)})
        if buffer:
            buffers += (bytes(offset - end), buffer)
            end = offset + len(buffer)
    text = orjson.dumps({"m": header, "v": slots})
    start = _PREFIX.size + len(text)
    # An empty tensor after the last byte needs no padding: nothing follows the last byte.
    padding = bytes(_aligned(start) - start) if end else b""
    return [_PREFIX.pack(MAGIC, VERSION, MINOR, len(text)), text, padding, *buffers]


def _pack_tensor(tensor: Tensor) -> tuple[dict[str, Any], memoryview]:
    """The tensor's description and its bytes in the order in which they lie in memory."""
    name = _NAMES.get(tensor.dtype)
    if name is None or tensor.layout is not torch.strided:
        raise WireError(f"a {tensor.layout} tensor of {tensor.dtype} has no form on the wire")
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    shape = list(tensor.shape)
    if tensor.numel() == 0:
        return {"dtype": name, "shape": shape}, memoryview(b"")
    if not is_dense(shape, tensor.stride()):
        # Expanded, overlapping or with gaps. `preserve_format` keeps the order of the dimensions.
        tensor = tensor.clone(memory_format=torch.preserve_format)
    strides = list(tensor.stride())
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    slot: dict[str, Any] = {"dtype": name, "shape": shape}
    if strides != _row_major(shape):
        slot["strides"] = strides
    return slot, flat.numpy().data


def _checked_int(value: Any) -> int:
    if type(value) is not int or abs(value) > MAX_INT:
        raise WireError(f"{value!r} has no form on the wire: a tensor, an integer within 2^53 or null has")
    return value


# Decoding -----------------------------------------------------------------------------------------


def _unpack(data: Frame, limits: EnvelopeLimits) -> tuple[Any, tuple[Value, ...], bool]:
    """Header, values, and whether a newer minor version wrote them."""
    view = memoryview(data).cast("B")
    if len(view) > limits.total_bytes:
        raise WireError(f"{len(view)} bytes are more than the limit of {limits.total_bytes}")
    if len(view) < _PREFIX.size:
        raise WireError("too short to be a message")
    magic, version, minor, length = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise WireError("not a message of SplitEasy")
    if version != VERSION:
        raise WireError(
            f"a message of wire version {version}, this side speaks {VERSION}", hint="upgrade the older side"
        )
    start = _PREFIX.size + length
    if length > limits.header_bytes or start > len(view):
        raise WireError(f"a header of {length} bytes does not fit")
    try:
        header = orjson.loads(view[_PREFIX.size : start])
    except orjson.JSONDecodeError as error:
        raise WireError(f"the header is not JSON: {error}") from None
    newer = minor > MINOR
    if not isinstance(header, dict) or not (
        header.keys() == {"m", "v"} or (newer and {"m", "v"} <= header.keys())
    ):
        raise WireError("the header is not a message's")
    return header["m"], _unpack_values(header["v"], view, start, limits), newer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """A tensor's description once it was found right. `offset` is from the beginning of the data."""

    dtype: torch.dtype
    shape: list[int]
    strides: list[int] | None
    offset: int
    length: int
    """The length in bytes."""


def _unpack_values(
    slots: Any, view: memoryview, header_end: int, limits: EnvelopeLimits
) -> tuple[Value, ...]:
    if not isinstance(slots, list) or len(slots) > limits.values:
        raise WireError("the values are not a list, or too many")
    start = _aligned(header_end)
    checked: list[_Slot | int | None] = []
    end = 0  # of the data so far
    for slot in slots:
        if slot is None or type(slot) is int:
            checked.append(slot if slot is None else _checked_int(slot))
            continue
        tensor = _check_slot(slot, limits)
        if tensor.offset != _aligned(end):
            raise WireError(f"a tensor at offset {tensor.offset} where {_aligned(end)} is next")
        if tensor.length:
            end = tensor.offset + tensor.length
        checked.append(tensor)
    if len(view) != (start + end if end else header_end):
        raise WireError(f"{len(view)} bytes are not the {start + end} that the header describes")
    if any(isinstance(slot, _Slot) and slot.length for slot in checked):
        view, start = _element_aligned(view, start)
    return tuple(_view(view, start, slot) if isinstance(slot, _Slot) else slot for slot in checked)


def _check_slot(slot: Any, limits: EnvelopeLimits) -> _Slot:
    if not isinstance(slot, dict) or slot.keys() - {"strides"} != _TENSOR_KEYS:
        raise WireError("a value is not a tensor, an integer or null")
    name = slot["dtype"]
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise WireError(f"unknown dtype {str(name)[:40]!r}")
    shape = _sizes(slot["shape"], limits.ndim)
    offset, length = slot["offset"], slot["length"]
    if type(offset) is not int or type(length) is not int:
        raise WireError("a tensor's offset and length are integers")
    # The sizes are bounded without those that are 0 too: torch refuses to multiply huge ones.
    if math.prod(size or 1 for size in shape) > limits.total_bytes:
        raise WireError(f"a tensor of shape {shape} is too large")
    if math.prod(shape) * dtype.itemsize != length:
        raise WireError(f"a tensor of shape {shape} and {name} is not {length} bytes long")
    strides = _sizes(slot["strides"], limits.ndim) if "strides" in slot else None
    if strides is not None and not (length and len(strides) == len(shape) and is_dense(shape, strides)):
        raise WireError(f"strides {strides} do not fill shape {shape}")
    return _Slot(dtype=dtype, shape=shape, strides=strides, offset=offset, length=length)


def _sizes(value: Any, ndim: int) -> list[int]:
    if not isinstance(value, list) or len(value) > ndim:
        raise WireError(f"a shape or strides are not a list of at most {ndim} integers")
    if any(type(size) is not int or not 0 <= size <= MAX_INT for size in value):
        raise WireError("a size or stride is not an integer from 0 on")
    return value


def _element_aligned(view: memoryview, start: int) -> tuple[memoryview, int]:
    """The same bytes and where the data starts, such that each tensor lies where its dtype may.

    Buffers of Python and torch do already; a slice at an odd place is copied.
    """
    if torch.frombuffer(view, dtype=torch.uint8, offset=start).data_ptr() % 8 == 0:
        return view, start
    return memoryview(bytearray(view[start:])), 0


def _view(view: memoryview, start: int, slot: _Slot) -> Tensor:
    if slot.length == 0:
        return torch.empty(slot.shape, dtype=slot.dtype)
    offset = start + slot.offset
    # The memoryview, unlike the buffer under it, keeps a bytearray from being resized.
    if (
        slot.dtype is torch.bool
        and torch.frombuffer(view, dtype=torch.uint8, count=slot.length, offset=offset).gt(1).any()
    ):
        raise WireError("a bool tensor holds other bytes than 0 and 1")
    count = slot.length // slot.dtype.itemsize
    flat = torch.frombuffer(view, dtype=slot.dtype, count=count, offset=offset)
    return flat.view(slot.shape) if slot.strides is None else flat.as_strided(slot.shape, slot.strides)


# Both ---------------------------------------------------------------------------------------------


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _row_major(shape: Sequence[int]) -> list[int]:
    """The strides of a contiguous tensor of that shape, as torch gives them."""
    strides = [1] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return strides


def _first_fault(error: ValidationError) -> str:
    """One line for a person, without the sender's values: they may be long, or private."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"not a message of ours: {where or 'message'}: {fault['msg']}"[:300]


with warnings.catch_warnings():
    # Torch warns once a process of a buffer that can't be written, like `bytes`; nobody writes to ours.
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)
