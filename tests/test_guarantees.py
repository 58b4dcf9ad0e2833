"""Every row of docs/guarantees.md names what backs it: faults that are drawn, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.chaos.device_faults import DEVICE_FAULTS
from tests.chaos.server_faults import SERVER_FAULTS
from tests.chaos.worker_faults import WORKER_FAULTS

ROOT = Path(__file__).resolve().parents[1]
CHAOS = {*SERVER_FAULTS, *WORKER_FAULTS, *DEVICE_FAULTS}
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs/guarantees.md").read_text().splitlines()
    if line.startswith("| ") and line.count(" | ") == 3 and not line.startswith(("| ---", "| fault"))
]


def simulated() -> str:
    return "".join(path.read_text() for path in (ROOT / "tests/simulation").glob("*.py"))


def functions_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_row_names_what_backs_it() -> None:
    simulation = simulated()
    assert len(ROWS) > 30
    for row in ROWS:
        for backing in row[-1].split(" · "):
            kind, _, name = backing.partition(": ")
            if kind == "chaos":
                assert name in CHAOS, row
            elif kind == "simulation":
                assert f'"{name}"' in simulation, row
            else:
                found = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", backing)
                assert found, row
                assert found[2] in functions_in(found[1]), row


def test_every_kind_of_chaos_backs_a_row() -> None:
    named = {backing.partition(": ")[2] for row in ROWS for backing in row[-1].split(" · ")}
    assert named >= CHAOS
