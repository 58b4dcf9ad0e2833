"""Another thread that seeds torch's generator whenever the lock lets it: it spoils unguarded dropout."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from spliteasy import randomness
from spliteasy.portable.program import Code

EVERY = 5
"""Threads cost time."""


@contextmanager
def intruding() -> Iterator[None]:
    """Before every EVERYth random program another thread seeds torch's generator, if the lock lets it."""
    run = Code.__call__
    calls = itertools.count(1)

    def intrude() -> None:
        if randomness._GENERATOR_LOCK.acquire(blocking=False):
            torch.default_generator.manual_seed(13)
            randomness._GENERATOR_LOCK.release()

    def call(self: Code, *args: Any, **kwargs: Any) -> Any:
        if self.random and next(calls) % EVERY == 0:
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
        return run(self, *args, **kwargs)

    with mock.patch.object(Code, "__call__", call):
        yield
