"""The reports of all benchmarks: the machine, tables, JSON under runs/bench."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table as Grid

from deploy.nodes.rabbitmq import find_scripts
from deploy.nodes.redis_server import find_binary

OUT = Path("runs/bench")


@dataclass(frozen=True, slots=True)
class Table:
    """Figures as a person reads them, goals beside them."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self) -> None:
        """Print it; columns of figures are set to the right."""
        grid = Grid(title=self.title, title_justify="left")
        for column, right in zip(self.head, self._to_the_right(), strict=True):
            grid.add_column(column, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            grid.add_row(*row)
        Console(width=150).print(grid)

    def markdown(self) -> str:
        lines = [self.head, ["--:" if right else "---" for right in self._to_the_right()], *self.rows]
        rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", *rows, ""])

    def _to_the_right(self) -> list[bool]:
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.head)
        return [any(re.match(r"[+−-]?\d", cell) for cell in column) for column in columns]


def goal(text: str, met: bool) -> str:
    """Return the goal beside a figure, and what became of it."""
    return f"{text}: {'met' if met else 'NOT met'}"


def about() -> dict[str, Any]:
    """Return what the figures depend on."""
    redis = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", redis)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "aiormq": version("aiormq"),
        "redis-py": version("redis"),
        "rabbitmq": find_scripts().parent.name.removeprefix("rabbitmq_server-"),
        "redis": found[1] if found else "",
    }


def save(name: str, figures: Any, tables: Sequence[Table], began: dict[str, Any]) -> None:
    """Keep the figures, their tables, and the machine as it was when the measuring `began`."""
    OUT.mkdir(parents=True, exist_ok=True)
    kept = {"about": began, "figures": figures, "tables": [asdict(table) for table in tables]}
    (OUT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def show_about() -> dict[str, Any]:
    """Print what the figures depend on; returns it for `save`."""
    found = about()
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found
