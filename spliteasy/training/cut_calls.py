"""The module calls that a job's cuts name, in the user's model as it runs whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from spliteasy.errors import JobError

AfterCall = Callable[[int, Any], Any]
"""A function that is called with a cut's place and the output of its module. Its result replaces the output;
None leaves it."""


class CutCalls:
    """The cuts as calls: a module's path, and the number of the call."""

    def __init__(self, model: nn.Module, cuts: Sequence[str]) -> None:
        self._model = model
        self._cuts = [(path, int(call) if call else 0) for path, _, call in (c.partition("#") for c in cuts)]

    def __len__(self) -> int:
        return len(self._cuts)

    def count_calls(self, inputs: Sequence[Tensor]) -> None:
        """Find by one forward which call a cut names that gives no number: a module's last one.

        Raises `JobError` if the forward does not call a module that a cut names.
        """
        calls = [0] * len(self._cuts)

        def count(place: int, _output: Any) -> None:
            calls[place] += 1

        with self.after_calls(count):
            self._model(*inputs)
        for (path, wanted), found in zip(self._cuts, calls, strict=True):
            if found < max(wanted, 1):
                raise JobError(f"the model calls module {path!r} {found} times, fewer than a cut names")
        paths = zip(self._cuts, calls, strict=True)
        self._cuts = [(path, wanted or found) for (path, wanted), found in paths]

    @contextmanager
    def at_cuts(self, at_cut: AfterCall, others: AfterCall = lambda _place, _output: None) -> Iterator[None]:
        """Call `at_cut` after each call that is a cut, and `others` after the other calls of its module."""
        calls = [0] * len(self._cuts)

        def after(place: int, output: Any) -> Any:
            calls[place] += 1
            return (at_cut if calls[place] == self._cuts[place][1] else others)(place, output)

        with self.after_calls(after):
            yield

    @contextmanager
    def after_calls(self, call: AfterCall) -> Iterator[None]:
        """Call `call` after each call of the module that a cut names."""

        def hook(place: int) -> Any:
            return lambda module, inputs, output: call(place, output)

        handles = [
            self._model.get_submodule(path).register_forward_hook(hook(place))
            for place, (path, _) in enumerate(self._cuts)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
