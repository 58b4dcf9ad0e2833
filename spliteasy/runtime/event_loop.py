"""The event loop of an agent's or a worker's process, which runs beside the thread that computes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from spliteasy.runtime.allocator import keep_freed_memory

SWITCH_S = 0.0005
"""One thread may keep the interpreter this long while the other wants it: Python's 5 ms are a round trip."""


def new_runner() -> asyncio.Runner:
    """Runs the process's main coroutine: on uvloop where it is installed, which moves bytes faster."""
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
    return asyncio.Runner(loop_factory=_loop_factory())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """None: asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
