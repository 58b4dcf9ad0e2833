"""All benchmarks, one after the other: `python -m benchmarks [--only links flaky]`, or `make bench`.

Each prints tables with the goals beside the figures, and keeps figures and tables as JSON under runs/bench,
with pictures of them. Each is a program of its own too, with options: `python -m benchmarks.links --help`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks.harness.pictures import draw
from benchmarks.harness.report import OUT

PARTS = {
    "codecs": (1, "encode and decode against memcpy"),
    "healthy": (4, "loopback: ours, and what else there is"),
    "sessions": (4, "what parked sessions cost"),
    "queues": (3, "classic queues beside quorum queues"),
    "links": (4, "emulated links against their bound"),
    "cache": (4, "activations of a frozen head: sent in each epoch, and named"),
    "lengths": (10, "texts as long as they are, and padded to the longest"),
    "flaky": (2, "a link that is cut every 10 s"),
    "many": (2, "1 to 64 devices on one worker"),
    "scale": (5, "1 and 2 workers on two cores, and 1 to 16 that wait"),
    "capacity": (4, "a model of large stacks, held to 1 to 64 devices"),
    "memory": (2, "peak memory of agent and worker"),
    "frozen": (2, "32 sessions over one frozen base"),
    "accelerator": (2, "bodies on a GPU, the CPU and in plain PyTorch"),
    "idle": (3, "memory and processor of an agent that waits"),
    "gateway": (2, "a thousand idle pages on one gateway"),
    "durability": (2, "with Redis over in memory"),
    "recovery": (8, "seconds until training moves again after a fault"),
    "fleet": (6, "one model from ten devices, by each way to average"),
    "profile": (1, "where the time of a step goes"),
}
"""The benchmarks by name: minutes on a quiet machine, and what is measured."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    chosen = parser.parse_args().only
    began, failed = time.monotonic(), []
    for place, name in enumerate(chosen, start=1):
        minutes, what = PARTS[name]
        spent = (time.monotonic() - began) / 60
        print(
            f"\n[{place}/{len(chosen)}] {name}: {what}; about {minutes} min, {spent:.0f} so far", flush=True
        )
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    pictures = draw(OUT)
    print(f"\nfigures: {OUT}/*.json; pictures: {', '.join(str(picture) for picture in pictures) or 'none'}")
    print("into the documents: python -m benchmarks.harness.document")
    if failed:
        print(f"error: {', '.join(failed)} ended with an error", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
