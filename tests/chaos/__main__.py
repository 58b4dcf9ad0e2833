"""`python -m tests.chaos`: real processes under real faults, then the equality.

--minutes 10 [--seed 1] [--devices 2] [--workers 2] [--appendfsync always] [--queues classic]
--once                         each kind of fault once, instead of --minutes, and without fleets

The last line is `max_abs_diff=0`; anything else exits non-zero. The same seed draws the same faults.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from broker.transport.topology import QueueType
from tests.chaos.device_faults import DEVICE_FAULTS
from tests.chaos.record import Record, table
from tests.chaos.run import GAP_S, Plan, Report, play
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.worker_faults import WORKER_FAULTS

INTERRUPTED = 130
ONCE_GAP_S = 1.0
LINE_EVERY_S = 10.0
REFRESH_S = 0.25
ROOM_BYTES = 2 << 30
"""The bytes that a run's folder may take in memory."""


def main() -> int:
    plan, keep = _arguments()
    torch.set_num_threads(1)
    folder, record = Path(tempfile.mkdtemp(prefix="chaos-", dir=_memory_folder())), Record()
    try:
        report = asyncio.run(_run(plan, folder, record))
    except asyncio.CancelledError:
        shutil.rmtree(folder)
        print("interrupted; all that was started is gone", file=sys.stderr)
        return INTERRUPTED
    (folder / "history.log").write_text("\n".join(record.history) + "\n")
    _print(report)
    if report.passed and not keep:
        shutil.rmtree(folder)
    else:
        print(f"history and logs: {folder}", file=sys.stderr)
    print(f"max_abs_diff={report.max_abs_diff:g}")
    return 0 if report.passed else 1


async def _run(plan: Plan, folder: Path, record: Record) -> Report:
    """Ctrl-C and SIGTERM cancel once: nothing cuts the clean-up short."""
    playing = asyncio.create_task(play(plan, folder, record))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, lambda: None if playing.cancelling() else playing.cancel())
    showing = asyncio.create_task(_show(plan, record))
    try:
        return await playing
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _show(plan: Plan, record: Record) -> None:
    """A bar on a terminal; elsewhere a line now and then."""
    console, began = Console(), asyncio.get_running_loop().time()
    total = plan.seconds or len(SERVER_FAULTS) + len(WORKER_FAULTS) + len(DEVICE_FAULTS)
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting RabbitMQ, Redis and workers", total=total)
        while True:
            await asyncio.sleep(REFRESH_S if console.is_terminal else LINE_EVERY_S)
            passed_s = asyncio.get_running_loop().time() - began
            text = f"{record.faults.total()} faults, {record.steps} steps, {record.takeovers} takeovers"
            done = passed_s if plan.seconds else record.faults.total()
            progress.update(bar, completed=min(done, total), description=text)
            if not console.is_terminal:
                console.print(f"{passed_s:.0f} s: {text}", highlight=False)


def _print(report: Report) -> None:
    record = report.record
    print(table(record))
    print("(seconds until the device took its next step: from a fault, or from the end of one that lasts)")
    print(
        f"takeovers {record.takeovers}, steps replayed {record.replayed}; agents resumed {record.resumes}, "
        f"steps taken again {record.steps_again} of {record.steps}"
    )
    again = max(0, record.bytes_up - report.bytes_needed)
    print(f"bytes sent up {record.bytes_up:,}, needed {report.bytes_needed:,}, sent again {again:,}")
    print(f"trainings finished and compared: {len(report.differences)}; fleets: {len(report.fleets)}")
    for session, worst in report.differences.items():
        if worst:
            print(f"{session}: differs by {worst:g}")
    for violation in record.violations:
        print(f"violation: {violation}")


def _arguments() -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults happen (default 10)")
    parser.add_argument("--once", action="store_true", help="each kind of fault once, instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--appendfsync", choices=("always", "everysec"), default="everysec")
    parser.add_argument(
        "--queues", type=QueueType, choices=list(QueueType), help="of the workers; else the seed draws"
    )
    parser.add_argument("--keep", action="store_true", help="keep history and logs even if all went well")
    given = parser.parse_args()
    plan = Plan(
        seed=given.seed,
        seconds=None if given.once else given.minutes * 60,
        devices=given.devices,
        workers=given.workers,
        appendfsync=given.appendfsync,
        queues=given.queues,
        gap_s=ONCE_GAP_S if given.once else GAP_S,
        fleets=not given.once,
    )
    return plan, given.keep


def _memory_folder() -> str | None:
    """Memory rather than a disk, whose hesitation would delay what Redis writes; None where it is small."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES else None


if __name__ == "__main__":
    sys.exit(main())
