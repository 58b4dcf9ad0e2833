"""Draws the states of a session's two sides into ARCHITECTURE.md, from their tables (`make docs`)."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from broker.protocol.messages import Message
from device_agent.session import states as device
from device_agent.session.events import Timer
from server_worker.session import states as worker


def device_diagram() -> str:
    """Return the Mermaid diagram of a device's session."""
    everywhere = " or ".join(_name(occasion) for occasion in device.EVERYWHERE)
    drawn = _drawn(device.State, device.TRANSITIONS, end=device.State.ENDED)
    return f"{drawn}\n\n{everywhere} leads from every state to ENDED.\n"


def worker_diagram() -> str:
    """Return the Mermaid diagram of a worker's side of a session."""
    everywhere = " or ".join(state.name for state in worker.State if state in worker.EVERYWHERE)
    drawn = _drawn(worker.State, worker.TRANSITIONS, end=None)
    return f"{drawn}\n\nFrom every state a request may lead to {everywhere}.\n"


DIAGRAMS = {"states": device_diagram, "worker-states": worker_diagram}
"""The diagrams by the names of their places: `<!-- NAME -->` begins one, `<!-- /NAME -->` ends it."""


def with_diagrams(page: str) -> str:
    """Return the page with the diagrams in their places."""
    for name, diagram in DIAGRAMS.items():
        page = _put(page, name, diagram())
    return page


def _put(page: str, name: str, drawn: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    return re.sub(f"{begin}.*?{end}", lambda _: f"{begin}{drawn}{end}", page, flags=re.DOTALL)


def _drawn(
    states: type[Enum], table: Mapping[Any, Mapping[Any, Collection[Any]]], *, end: Enum | None
) -> str:
    """Draw a table: one arrow between two states, with all that it happens on."""
    arrows: defaultdict[tuple[Enum, Enum], list[str]] = defaultdict(list)
    for state, row in table.items():
        for occasion, following in row.items():
            for after in sorted(following, key=list(states).index):
                arrows[state, after].append(_name(occasion))
    lines = [f"    [*] --> {next(iter(states)).name}"]
    lines += [f"    {one.name} --> {two.name}: {', '.join(names)}" for (one, two), names in arrows.items()]
    if end is not None:
        lines.append(f"    {end.name} --> [*]")
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


def _name(occasion: Any) -> str:
    """Return the occasion's name: a message's kind as the wire has it, else the event's class."""
    if isinstance(occasion, Timer):
        return f"the {occasion.value} timer"
    kind = occasion.model_fields.get("kind") if issubclass(occasion, Message) else None
    if kind is not None:
        return str(kind.default)
    return "a reply of an older owner" if issubclass(occasion, Message) else str(occasion.__name__)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(with_diagrams(Path(name).read_text()))
