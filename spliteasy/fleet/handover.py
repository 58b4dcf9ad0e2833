"""A sealed handover: what a device leaves to the next one, so that broker, store and worker can't read it.

Nothing is added up here, so that the tensors travel as they are, to the last bit. Their bytes are hidden by a
stream of the fleet's key that is used once, for this device, turn and nonce, and a code of the same key tells
whether they were changed on the way. The nonce is drawn for every handover, so that no stream serves twice.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from spliteasy.errors import SplitEasyError
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.runtime.randomness import Key

CODE_BYTES = 32


class ForeignHandover(SplitEasyError):
    """A handover was not sealed by the device that it names; nothing was changed."""


def seal_handover(tensors: Mapping[str, Tensor], *, key: Key, device: str, turn: int, nonce: str) -> Tensor:
    """Return the tensors as bytes that only the fleet's devices can read: one tensor of uint8."""
    place = key.at("handover", turn, device, nonce)
    hidden = _hidden(tensors_to_bytes(tensors), place)
    return torch.frombuffer(bytearray(hidden + _code(hidden, place)), dtype=torch.uint8)


def open_handover(sealed: Tensor, *, key: Key, device: str, turn: int, nonce: str) -> dict[str, Tensor]:
    """Return what `seal_handover` was given. Raises ForeignHandover."""
    place, data = key.at("handover", turn, device, nonce), sealed.numpy().tobytes()
    hidden, code = data[:-CODE_BYTES], data[-CODE_BYTES:]
    if not hmac.compare_digest(code, _code(hidden, place)):
        raise ForeignHandover(
            f"what the worker sent for turn {turn} was not handed over by {device}, or was changed since",
            hint="a device with another fleet key took part, or the worker changed the bytes",
        )
    return tensors_from_bytes(_hidden(hidden, place))


def _hidden(data: bytes, place: Key) -> bytes:
    """Return the bytes under the stream of that place; the same again takes it off."""
    stream = np.frombuffer(place.at("stream").stream(len(data)), np.uint8)
    return (np.frombuffer(data, np.uint8) ^ stream).tobytes()


def _code(hidden: bytes, place: Key) -> bytes:
    secret = place.at("code").stream(CODE_BYTES)
    return hashlib.blake2b(hidden, key=secret, digest_size=CODE_BYTES).digest()
