"""One message of each kind, and hostile variations of their bytes."""

from __future__ import annotations

import random
import struct
from copy import deepcopy
from typing import Any, get_args

import orjson
import torch

from broker.protocol import envelope, messages
from broker.protocol.messages import AnyMessage, AttemptRef, Value

NONCE = "0123456789abcdef"
DIGEST = "ab" * 32
ATTEMPT = AttemptRef(number=3, nonce=NONCE)
SESSION: dict[str, Any] = {"session": "digits.phone-1"}
REQUEST: dict[str, Any] = {**SESSION, "request": NONCE, "attempt": ATTEMPT, "step": 7}
REPLY: dict[str, Any] = {**SESSION, "answers": NONCE, "attempt": ATTEMPT, "fence": 2, "step": 7}


def carrier(*values: Value) -> AnyMessage:
    """A message with these values."""
    return messages.Evaluated(**REPLY, values=values)


def examples(values: tuple[Value, ...] = ()) -> list[AnyMessage]:
    """One message of each kind; those that carry tensors carry `values`."""
    found: list[AnyMessage] = [
        messages.GetJob(**SESSION, request=NONCE, digest=DIGEST),
        messages.Open(
            **SESSION,
            request=NONCE,
            attempt=ATTEMPT,
            digest=DIGEST,
            held=(0, 5, 2**53 - 1),
            agent="1.0.dev1+a",
            total_steps=9,
        ),
        messages.Forward(**REQUEST, oldest_checkpoint=4, samples=32, length=48, targets=1, values=values),
        messages.Recall(
            **REQUEST,
            forward=NONCE,
            sent=((2, 4),),
            micro=1,
            oldest_checkpoint=4,
            samples=32,
            batch=64,
            targets=1,
            counted=2.5,
            values=values,
        ),
        messages.Backward(**REQUEST, micro=2, forward=NONCE, loss=-0.5, values=values),
        messages.Ready(
            **REQUEST,
            round=3,
            last=True,
            names=("sealed",),
            samples=120,
            accuracy=0.75,
            nonce=NONCE,
            fleet_key=NONCE,
            oldest_checkpoint=4,
            values=values,
        ),
        messages.Eval(**REQUEST, samples=4, length=48, values=values),
        messages.Ask(**REQUEST, about=NONCE, about_kind="BACKWARD", forward=NONCE),
        messages.GetBody(**REQUEST),
        messages.Close(**REQUEST),
        messages.Job(
            **SESSION,
            answers=NONCE,
            digest=DIGEST,
            shard=3,
            manifest='{"ü": 1}',
            parts=("head", "tail"),
            signature="5" * 128,
        ),
        messages.Opened(**REPLY, durable_step=5),
        messages.Superseded(**SESSION, answers=NONCE, attempt=ATTEMPT, newest=9),
        messages.Reopen(**SESSION, answers=NONCE, attempt=ATTEMPT, reason="the store went back"),
        messages.Forwarded(**REPLY, values=values),
        messages.Gradient(**REPLY, durable_step=6, loss=0.1, checkpoint=True, values=values),
        messages.Mean(
            **REPLY,
            durable_step=6,
            round=3,
            record=DIGEST,
            names=("sealed",),
            drawn=4,
            sealed=messages.SealedSum(
                round=3, drawn=3, addends=(messages.SealedAddend(device="phone-1", nonce=NONCE, weight=120),)
            ),
            values=values,
        ),
        messages.Evaluated(**REPLY, values=values),
        messages.Missing(**REPLY, missing="FORWARD"),
        messages.Working(**SESSION, answers=NONCE, attempt=ATTEMPT, step=7),
        messages.Body(**REPLY, names=("conv.weight",), values=values),
        messages.Closed(**REPLY),
        messages.Busy(answers=NONCE, retry_after_s=1.5),
        messages.Have(answers=NONCE, ranges=((0, 3), (5, 6))),
        messages.Error(**SESSION, answers=NONCE, code="bad-tensor", message="shape", hint="look"),
    ]
    assert {type(message) for message in found} == {*get_args(AnyMessage)}
    return found


def forge(header: Any, data: bytes = b"", *, raw: bytes | None = None) -> bytes:
    """An envelope with any header (`raw`: not even JSON) and data, put together as the format says."""
    text = orjson.dumps(header) if raw is None else raw
    start = 12 + len(text)
    padding = bytes(-start % 64) if data else b""
    return struct.pack("<4sHHI", b"SPEZ", 1, 0, len(text)) + text + padding + data


def header_of(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<I", data, 8)
    header: dict[str, Any] = orjson.loads(data[12 : 12 + length])
    return header


HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 63, 64, 2**31, 2**53, 2**63, 2**64 - 1, 1.5, -0.0, 1e308, "", "float32", "bool",
    "int64", "complex64", "x" * 5000, "\u0000", "FORWARD", [], [0], [-1], [2**53] * 9, [[]], {}, {"m": 1},
]  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some damage: to the bytes, or to the header as JSON, with the data as it was."""
    kind = rng.randrange(8)
    if kind < 4:
        return _damaged_bytes(data, kind, rng)
    header = header_of(data)
    (length,) = struct.unpack_from("<I", data, 8)
    body = data[-(-(12 + length) // 64) * 64 :]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        _damage_json(header, rng)
    if kind == 7:
        body = body[: rng.randrange(len(body) + 1)] + rng.randbytes(rng.randrange(3))
    return forge(header, body)


def _damaged_bytes(data: bytes, kind: int, rng: random.Random) -> bytes:
    where = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
    if kind == 0:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            flipped[(where + rng.randrange(32)) % len(data)] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if kind == 1:
        return data[:where]
    if kind == 2:
        return data[:where] + rng.randbytes(rng.choice((1, 4, 64))) + data[where:]
    return data[:where] + data[where + rng.choice((1, 4, 64)) :]


def _damage_json(value: Any, rng: random.Random) -> None:
    """Replace, drop or add one entry somewhere in a tree of lists and objects."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and rng.random() < 0.8:
            value = value[key]
            continue
        action = rng.randrange(8)
        if action == 0:
            del value[key]
        elif action == 1 and isinstance(value, dict):
            value[rng.choice(["extra", "strides", "values", "kind", "v"])] = deepcopy(rng.choice(HOSTILE))
        elif action == 2 and type(value[key]) is int and abs(value[key]) < 2**62:
            value[key] += rng.choice((-1, 1, 64, -64))
        else:
            value[key] = deepcopy(rng.choice(HOSTILE))
        return


def fuzz_values() -> tuple[Value, ...]:
    """Values of all sorts: odd layouts and dtypes, integers, nulls."""
    torch.manual_seed(1)
    return (
        torch.randn(3, 4, 5).permute(2, 0, 1),
        7,
        None,
        torch.tensor([True, False, True]),
        torch.empty(0, 3),
        torch.randn(6).bfloat16(),
        torch.tensor(2.5),
        torch.arange(4),
    )


assert envelope.MAGIC == b"SPEZ"
