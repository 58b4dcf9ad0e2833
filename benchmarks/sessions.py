"""The cost of many parked sessions in Redis: bytes of each, and the times of a page and of all names.

python -m benchmarks.sessions [--sessions 100 10000 100000]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness.services import free_port
from deploy.nodes.redis_server import RedisServer
from server_worker.store import Attempt, Done, open_store
from server_worker.store.redis.link import connect

TOGETHER = 64
"""Sessions that are opened at a time."""

ENVIRONMENT = "torch 2.9.0, AVX512, 1 threads, probe " + "0" * 32


async def measure(url: str, counts: Sequence[int]) -> None:
    """Print a line for each number of sessions, which lie in the store by then."""
    store, link = await open_store(url), await connect(url)
    before, there = int((await link.call("INFO", "memory"))["used_memory"]), 0

    async def park(number: int) -> None:
        outcome = await store.open_session(
            f"digits.phone-{number:06}",
            job_digest="0" * 64,
            attempt=Attempt(number=1, nonce="a" * 16),
            held=(0,),
            worker="w" * 16,
            environment=ENVIRONMENT,
            agent="0.2.0",
            total_steps=1000,
        )
        assert isinstance(outcome, Done)

    for count in counts:
        for first in range(there, count, TOGETHER):
            await asyncio.gather(*(park(number) for number in range(first, min(first + TOGETHER, count))))
        there = count
        used = int((await link.call("INFO", "memory"))["used_memory"]) - before
        began = time.perf_counter()
        await store.newest_sessions(50)
        paged = time.perf_counter()
        assert len(await store.session_names()) == count
        named = time.perf_counter()
        print(
            f"{count:7} sessions: {used / count:5.0f} bytes each,"
            f" a page of 50 in {1000 * (paged - began):.1f} ms,"
            f" the names of all in {1000 * (named - paged):.1f} ms",
            flush=True,
        )
    await store.close()
    await link.close()


def main() -> None:
    """Start a Redis and measure it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sessions", description=__doc__)
    parser.add_argument("--sessions", type=int, nargs="+", default=[100, 10_000, 100_000])
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="spliteasy-sessions-") as folder:
        server = RedisServer(folder=Path(folder), port=free_port())
        server.start()
        try:
            asyncio.run(measure(server.url, sorted(asked.sessions)))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
