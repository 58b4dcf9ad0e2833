"""The fixtures of all tests: servers of their own, one thread per process, the same examples each time."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: the tests' processes share the cores, and bit-identity depends on the number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A shell's background jobs ignore SIGINT, and all that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "spliteasy",
    deadline=None,
    derandomize=True,  # the same examples each time; long tests draw new ones
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("spliteasy")

pytest_plugins = [
    f"tests.{name}"
    for name in ("fixtures_redis", "fixtures_rabbitmq")
    if (Path(__file__).parent / f"{name}.py").exists()
]


def pytest_collection_finish() -> None:
    """Leave what all tests stand on, torch's modules above all, out of every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    """A command sets logging up for its whole process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    libraries = {name: logging.getLogger(name).level for name in ("aiormq", "asyncio", "matplotlib", "torch")}
    yield
    root.handlers[:], root.level = handlers, level
    for name, library_level in libraries.items():
        logging.getLogger(name).setLevel(library_level)
    structlog.reset_defaults()
