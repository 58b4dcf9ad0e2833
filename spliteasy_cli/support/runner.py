"""Run a command's coroutine so that Ctrl-C and SIGTERM end it well.

The first one asks: the command finishes its step, checkpoints and leaves. The second one cancels it. The
third one ends the process at once, for a computation that does not let go.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def run(main: Callable[[asyncio.Event], Awaitable[T]], *, on_stop: str = "stopping") -> T:
    """Run `main(stop)`; `stop` is set by the first signal, `on_stop` says what happens then.

    Raises KeyboardInterrupt where a second signal cancelled it, and what `main` raises.
    """
    from spliteasy.runtime.event_loop import new_runner

    with new_runner() as runner:
        return runner.run(_supervise(main, on_stop))


async def _supervise(main: Callable[[asyncio.Event], Awaitable[T]], on_stop: str) -> T:
    import asyncio

    stop = asyncio.Event()
    task = asyncio.ensure_future(main(stop))
    signals = 0

    def interrupted() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            if sys.stderr.isatty():
                print(f"\n{on_stop} (Ctrl-C again: at once)", file=sys.stderr)
            else:
                import structlog

                structlog.get_logger(__name__).info(on_stop)
            stop.set()
        elif signals == 2:
            task.cancel()
        else:
            os._exit(130)

    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    for number in handled:
        loop.add_signal_handler(number, interrupted)
    try:
        return await task
    except asyncio.CancelledError:
        if signals >= 2:
            raise KeyboardInterrupt from None
        raise
    finally:
        task.cancel()
        for number in handled:
            loop.remove_signal_handler(number)
