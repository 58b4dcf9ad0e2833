"""Seed every generator that a user's code may draw from: torch's, numpy's and Python's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from spliteasy.runtime.randomness import drawing, state_of


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


def seed_all(seed: int) -> None:
    """Seed the three generators; call it within `states_kept`."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
