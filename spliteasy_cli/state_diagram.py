"""Draws the states of a device's session into ARCHITECTURE.md, from their table (`make docs`)."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from broker.protocol.messages import Reply
from device_agent.session.events import Timer
from device_agent.session.states import EVERYWHERE, TRANSITIONS, Occasion, State

BEGIN, END = "<!-- states -->\n", "<!-- /states -->"


def diagram() -> str:
    """Return the Mermaid diagram: one arrow between two states, with all that it happens on."""
    arrows: defaultdict[tuple[State, State], list[str]] = defaultdict(list)
    for state, row in TRANSITIONS.items():
        for occasion, following in row.items():
            for after in sorted(following, key=list(State).index):
                arrows[state, after].append(_name(occasion))
    lines = [f"    [*] --> {next(iter(State)).name}"]
    lines += [f"    {one.name} --> {two.name}: {', '.join(names)}" for (one, two), names in arrows.items()]
    lines.append(f"    {State.ENDED.name} --> [*]")
    everywhere = " or ".join(_name(occasion) for occasion in EVERYWHERE)
    drawn = "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])
    return f"{drawn}\n\n{everywhere} leads from every state to ENDED.\n"


def with_diagram(page: str) -> str:
    """Return the page with the diagram in its place."""
    found = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    return found.sub(lambda _: f"{BEGIN}{diagram()}{END}", page)


def _name(occasion: Occasion) -> str:
    """Return the occasion's name: a message's kind as the wire has it, else the event's class."""
    if isinstance(occasion, Timer):
        return f"the {occasion.value} timer"
    kind = occasion.model_fields.get("kind") if issubclass(occasion, Reply) else None
    if kind is not None:
        return str(kind.default)
    return "a reply of an older owner" if issubclass(occasion, Reply) else occasion.__name__


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(with_diagram(Path(name).read_text()))
