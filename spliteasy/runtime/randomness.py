"""Random numbers that are a pure function of where they are drawn.

Torch's CPU generator belongs to the process: two threads that set it and draw at once spoil each
other's numbers. Whoever sets it and draws does so within `drawing`, which holds the one lock.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GENERATOR_LOCK = threading.RLock()


def seed_of(*parts: str | int) -> int:
    """63 bits that depend on every part."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def state_of(seed: int) -> Tensor:
    """The state of torch's CPU generator after it was seeded with `seed`."""
    return torch.Generator().manual_seed(seed).get_state()


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
