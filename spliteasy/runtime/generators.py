"""Seed every generator that a user's code may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from spliteasy.runtime.randomness import MT_WORDS, Key, Seed, drawing, state_of, torch_state


@contextmanager
def states_kept() -> Iterator[None]:
    """Hold torch's generator and its lock; at the end all three generators are what they were before."""
    with drawing(state_of(0)):
        numpy_state, random_state = np.random.get_state(), random.getstate()
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(random_state)


def seed_all(seed: Seed) -> None:
    """Put the three generators where `seed` says; call it within `states_kept`.

    A key gives each of them 256 bits or more of its own: their seeds by number have 32.
    """
    if isinstance(seed, Key):
        stream = seed.stream(4 * MT_WORDS + 64)
        torch.default_generator.set_state(torch_state(stream[: 4 * MT_WORDS]))
        np.random.seed(np.frombuffer(stream[-64:-32], "<u4"))
        random.seed(int.from_bytes(stream[-32:], "big"))
        return
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
