"""Torch runs in threads of its own, so that the event loop beside it stays responsive.

A simulation gives another `Compute` that runs at once, under a virtual clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from spliteasy.errors import OutOfMemory

T = TypeVar("T")

NO_MEMORY = "can't allocate memory"
"""Torch's allocator says this when it fails; it raises a plain RuntimeError."""

_NO_MEMORY = (NO_MEMORY, "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")
"""The words by which an allocator says that it failed: torch's own, C++'s within torch's kernels, and those
of accelerators and of their libraries."""

OUT_OF_MEMORY_HINT = "give it more memory, or submit the job with smaller batches"


class Compute(Protocol):
    """Runs a computation and gives its result; what it raises comes out of the await."""

    async def __call__(self, run: Callable[[], T]) -> T: ...


class TorchThread:
    """Runs computations in a thread of its own, one at a time in order of arrival.

    An accelerator may have more `threads`, so that one fills it while another waits for it. A cancelled call
    does not stop a computation that has begun; its result is thrown away.
    """

    def __init__(self, name: str = "torch", *, threads: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def __call__(self, run: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, guarded, run)

    def close(self) -> None:
        """Wait for the current computation, drop those waiting."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def guarded(run: Callable[[], T]) -> T:
    """Run it. Raises OutOfMemory where Python or torch finds no memory.

    A StopIteration can't travel through a future; nothing of ours raises it on purpose.
    """
    try:
        return run()
    except MemoryError as error:
        raise OutOfMemory("no memory", hint=OUT_OF_MEMORY_HINT) from error
    except StopIteration as error:
        raise RuntimeError(f"a computation raised {error!r}") from error
    except RuntimeError as error:
        if not finds_no_memory(error):
            raise
        raise OutOfMemory(f"no memory: {error}"[:300], hint=OUT_OF_MEMORY_HINT) from error


def finds_no_memory(error: RuntimeError) -> bool:
    """Return whether an allocator of torch, or a library of an accelerator, raised it for want of memory."""
    return any(text in str(error) for text in _NO_MEMORY)
