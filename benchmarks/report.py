"""What all benchmarks print and keep: the machine, tables, JSON under runs/bench."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from deploy.rabbitmq import find_scripts
from deploy.redis_server import find_binary

OUT = Path("runs/bench")


def about() -> dict[str, Any]:
    """What the figures depend on."""
    redis = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", redis)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 1),
        "aiormq": version("aiormq"),
        "redis-py": version("redis"),
        "rabbitmq": find_scripts().parent.name.removeprefix("rabbitmq_server-"),
        "redis": found[1] if found else "",
    }


def save(name: str, figures: Any) -> None:
    """Keep the figures beside a description of the machine."""
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": about(), "figures": figures}, indent=1)
    (OUT / f"{name}.json").write_text(text + "\n")


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns of figures are set to the right."""
    grid = Table(title=title, title_justify="left")
    for place, column in enumerate(head):
        figures = any(row[place][:1].isdigit() or row[place][:1] in "+-" for row in rows if row[place])
        grid.add_column(column, justify="right" if figures else "left", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    Console(width=150).print(grid)
