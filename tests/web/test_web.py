"""The browser's agent: its own tests in Node, its types, and that what ships is what its sources give."""

from __future__ import annotations

import json
from pathlib import Path

from tests.web.defences import defended
from tests.web.metrics import measured
from tests.web.node import WEB, packages, run
from tests.web.rounds import sealed_rounds
from tests.web.trainings import trainings


def test_the_agents_own_tests_pass_in_node(tmp_path: Path) -> None:
    node = packages()
    given = {
        "TRAININGS": list(trainings()),
        "METRICS": list(measured()),
        "DEFENCES": defended(),
        "ROUNDS": sealed_rounds(),
    }
    env = {}
    for name, vectors in given.items():
        file = tmp_path / f"{name.lower()}.json"
        file.write_text(json.dumps(vectors))
        env[f"SPLITEASY_{name}"] = str(file)
    run(node, "test.mjs", env=env)


def test_the_types_are_right() -> None:
    run(packages(), "node_modules/typescript/bin/tsc", "--noEmit")


def test_the_types_of_messages_are_those_of_the_schemas() -> None:
    run(packages(), "types.mjs", "--check")


def test_what_ships_is_what_the_sources_give(tmp_path: Path) -> None:
    """Where this fails, run `npm run build` in device_agent/web and commit what it writes."""
    run(packages(), "build.mjs", "--out", str(tmp_path / "dist"))
    assert contents(WEB / "dist") == contents(tmp_path / "dist")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
