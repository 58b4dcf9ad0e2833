"""Random numbers that are a pure function of where they are drawn.

Torch's CPU generator belongs to the process: two threads that seed it and draw at once spoil each
other's numbers. Whoever seeds and draws does so within `seeded`, which holds the one lock.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_GENERATOR_LOCK = threading.RLock()


def seed_of(*parts: str | int) -> int:
    """63 bits that depend on every part."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Hold torch's CPU generator, seeded with `seed`; its state is put back at the end."""
    with _GENERATOR_LOCK:
        state = torch.random.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.random.set_rng_state(state)
