"""Give the random layers of a whole model the numbers that they draw as parts of segments.

A split model draws in each segment from a generator state of that segment's own. The whole model calls the
same layers in the same order, so it draws the same numbers once the generator's state changes where one
segment ends and the next begins: after the module calls that the cuts name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from spliteasy.runtime.randomness import drawing
from spliteasy.training.cut_calls import CutCalls


@contextmanager
def drawn(cuts: CutCalls, states: Sequence[Tensor]) -> Iterator[None]:
    """Draw each segment's random numbers from its state, while the model runs once, forward and backward.

    A region that is computed again in the backward (checkpointing) begins with the state that it began
    with before, and so comes to the same states at the cuts within it.
    """
    following: dict[bytes, Tensor] = {}

    def now() -> bytes:
        return torch.random.get_rng_state().numpy().tobytes()

    def at_cut(place: int, _output: Any) -> None:
        following[now()] = states[place + 1]
        switch(place, None)

    def switch(_place: int, _output: Any) -> None:
        state = now()
        if state in following:
            torch.random.set_rng_state(following[state])

    with drawing(states[0]), cuts.at_cuts(at_cut, switch):
        yield
