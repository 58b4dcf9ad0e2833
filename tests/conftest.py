"""What all tests share: servers of their own, one thread per process, hypothesis without deadlines."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: the tests' processes share the cores, and bit-identity depends on the number.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

settings.register_profile("spliteasy", deadline=None, print_blob=True)
settings.load_profile("spliteasy")

pytest_plugins = [
    f"tests.{name}"
    for name in ("fixtures_redis", "fixtures_rabbitmq")
    if (Path(__file__).parent / f"{name}.py").exists()
]
