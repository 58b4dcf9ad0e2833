"""Random numbers that are a pure function of where they are drawn, and of a secret where it must stay one.

Torch's CPU generator belongs to the process: two threads that set it and draw at once spoil each
other's numbers. Code that sets it and draws does so within `drawing`, which holds the one lock.

A number as a seed is public: torch and numpy use 32 bits of it, which can all be tried in hours. What
nobody may guess begins from a `Key`, which sets the generator's whole state.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NoReturn, TypeAlias

import numpy as np
import torch
from torch import Tensor

KEY_BYTES = 32
MT_WORDS = 624
"""32-bit words in the state of a Mersenne Twister, torch's and numpy's generator."""

_WORDS_AT = 24
"""Bytes before the words in the state of torch's generator; each word takes eight bytes there."""

_GENERATOR_LOCK = threading.RLock()


class Key:
    """32 secret bytes, or what was derived from them; never shown, never made a seed of 32 bits."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._key = bytes(key)

    def at(self, *parts: str | int) -> Key:
        """Return the key of a purpose and place: every part counts, and it says nothing of other keys."""
        hasher = hashlib.blake2b(key=self._key, digest_size=KEY_BYTES, person=b"spliteasy-key")
        for part in parts:
            text = part.encode() if isinstance(part, str) else b"%d" % part
            hasher.update(b"%s%d:" % (b"s" if isinstance(part, str) else b"i", len(text)) + text)
        return Key(hasher.digest())

    def stream(self, nbytes: int) -> bytes:
        """The first `nbytes` of this key's stream (SHAKE-256)."""
        return hashlib.shake_256(b"spliteasy-stream" + self._key).digest(nbytes)

    def __repr__(self) -> str:
        return "<Key>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not written anywhere")


Seed: TypeAlias = int | Key
"""The beginning of a generator: a public number, or a key."""


def seed_of(*parts: str | int) -> int:
    """63 bits that depend on every part."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def state_of(seed: Seed) -> Tensor:
    """The state of torch's CPU generator where `seed` says that it begins."""
    if isinstance(seed, int):
        return torch.Generator().manual_seed(seed).get_state()
    return torch_state(seed.stream(4 * MT_WORDS))


def torch_state(words: bytes) -> Tensor:
    """The state of torch's CPU generator whose Mersenne Twister holds these words."""
    state = _fresh_state().clone()
    state.numpy()[_WORDS_AT : _WORDS_AT + 8 * MT_WORDS].view(np.uint64)[:] = np.frombuffer(words, "<u4")
    return state


@cache
def _fresh_state() -> Tensor:
    """The state of a generator that has drawn nothing; its layout is looked at, since torch may change it."""
    state = state_of(5489)
    raw = state.numpy()[_WORDS_AT : _WORDS_AT + 8 * MT_WORDS]
    expected = np.random.RandomState(5489).get_state(legacy=False)["state"]["key"]
    if raw.size != 8 * MT_WORDS or not np.array_equal(raw.view(np.uint64), expected):
        raise RuntimeError(f"torch {torch.__version__} keeps the state of its generator in an unknown form")
    return state


@contextmanager
def drawing_on(processor: torch.device, seed: Seed) -> Iterator[None]:
    """Hold the generators of the CPU and of the processor, where `seed` says at first.

    What they were before is put back at the end. Raises ValueError for a key on an accelerator, whose
    generator has no room for all of it.
    """
    with drawing(state_of(seed)):
        if processor.type == "cpu":
            yield
            return
        if not isinstance(seed, int):
            raise ValueError("a key's numbers are drawn on the CPU alone")
        module = torch.get_device_module(processor)
        before = module.get_rng_state(processor)
        module.manual_seed(seed)
        try:
            yield
        finally:
            module.set_rng_state(before, processor)


@contextmanager
def drawing(state: Tensor) -> Iterator[None]:
    """Hold torch's CPU generator, in `state` at first; what it was before is put back at the end."""
    with _GENERATOR_LOCK:
        before = torch.random.get_rng_state()
        torch.random.set_rng_state(state)
        try:
            yield
        finally:
            torch.random.set_rng_state(before)
