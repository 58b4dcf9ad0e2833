"""`make attack`: every attack on a broker and a worker of its own, as a table; then `violations=N`."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from spliteasy.observability import logs
from tests.attack import on_the_broker, on_the_device, on_the_gateway, on_the_wire
from tests.attack.arena import open_arena
from tests.attack.play import Verdict, play
from tests.fixtures_rabbitmq import RabbitBroker, new_node

ATTACKS = (*on_the_broker.ATTACKS, *on_the_wire.ATTACKS, *on_the_device.ATTACKS, *on_the_gateway.ATTACKS)


def show(verdict: Verdict) -> None:
    """One line of the table, cut to the terminal's width."""
    width = shutil.get_terminal_size((160, 24)).columns
    stopped = verdict.stopped_by or "NOTHING"
    print(f"{verdict.attack:35} | {stopped[: width - 80]:{width - 80}} | {verdict.effect}", flush=True)


async def _play(folder: Path) -> int:
    node = new_node(folder / "rabbitmq")
    node.start()
    try:
        async with open_arena(node, RabbitBroker(node=node).new_vhost(), folder) as arena:
            return await play(arena, ATTACKS, show)
    finally:
        node.kill()


def main() -> int:
    """Exit code 0 where there are no violations."""
    logs.configure("error")
    show(Verdict(attack="attack", stopped_by="what stopped it", effect="effect on others", violations=0))
    with TemporaryDirectory(prefix="spliteasy-attack-") as folder:
        violations = asyncio.run(_play(Path(folder)))
    print(f"violations={violations}")
    return int(violations > 0)


if __name__ == "__main__":
    sys.exit(main())
