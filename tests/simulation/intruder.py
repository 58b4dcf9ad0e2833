"""Another thread that seeds torch's generator whenever the lock lets it: it spoils unguarded dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from spliteasy.graph.program import Code
from spliteasy.runtime import randomness


@contextmanager
def intruding() -> Iterator[None]:
    """Let another thread seed torch's generator before every random program, if the lock lets it.

    The simulation has one thread, so the lock is free for another one unless this one holds it.
    """
    run = Code.__call__

    def call(self: Code, *args: Any, **kwargs: Any) -> Any:
        if self.random and not randomness._GENERATOR_LOCK._is_owned():  # type: ignore[attr-defined]
            torch.default_generator.manual_seed(13)
        return run(self, *args, **kwargs)

    with mock.patch.object(Code, "__call__", call):
        yield
