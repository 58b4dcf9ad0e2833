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
from torch import Tensor, nn

from spliteasy.errors import JobError
from spliteasy.runtime.randomness import drawing


class SegmentMasks:
    """Changes the generator's state at the cuts of a model that runs whole."""

    def __init__(self, model: nn.Module, cuts: Sequence[str]) -> None:
        self._model = model
        self._cuts = [(path, int(call) if call else 0) for path, _, call in (c.partition("#") for c in cuts)]

    def count_calls(self, inputs: Sequence[Tensor]) -> None:
        """Find by one forward which call a cut names that gives no number: a module's last one.

        Raises `JobError` if the forward does not call a module that a cut names.
        """
        calls = [0] * len(self._cuts)

        def count(place: int) -> None:
            calls[place] += 1

        with self._after_cuts(count):
            self._model(*inputs)
        for (path, wanted), found in zip(self._cuts, calls, strict=True):
            if found < max(wanted, 1):
                raise JobError(f"the model calls module {path!r} {found} times, fewer than a cut names")
        paths = zip(self._cuts, calls, strict=True)
        self._cuts = [(path, wanted or found) for (path, wanted), found in paths]

    @contextmanager
    def drawn(self, states: Sequence[Tensor]) -> Iterator[None]:
        """Within, the model runs once, forward and backward, and each segment's part draws from its state.

        A region that is computed again in the backward (checkpointing) begins with the state that it began
        with before, and so comes to the same states at the cuts within it.
        """
        calls = [0] * len(self._cuts)
        following: dict[bytes, Tensor] = {}

        def switch(place: int) -> None:
            state = torch.random.get_rng_state().numpy().tobytes()
            calls[place] += 1
            if calls[place] == self._cuts[place][1]:
                following[state] = states[place + 1]
            if state in following:
                torch.random.set_rng_state(following[state])

        with drawing(states[0]), self._after_cuts(switch):
            yield

    @contextmanager
    def _after_cuts(self, call: Any) -> Iterator[None]:
        """Call `call(place)` after each call of the module that the cut at `place` names."""

        def hook(place: int) -> Any:
            return lambda module, inputs, output: call(place)

        handles = [
            self._model.get_submodule(path).register_forward_hook(hook(place))
            for place, (path, _) in enumerate(self._cuts)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
