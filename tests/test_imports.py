"""The sources import only what ARCHITECTURE.md allows. They are read, so that nothing has to run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {
    "spliteasy",
    "spliteasy_cli",
    "broker",
    "device_agent",
    "server_worker",
    "deploy",
    "testing",
    "tests",
    "benchmarks",
    "examples",
}
MAY_IMPORT = {
    "spliteasy": {"spliteasy"},
    "broker": {"broker", "spliteasy"},
    "device_agent": {"device_agent", "broker", "spliteasy"},
    "server_worker": {"server_worker", "broker", "spliteasy"},
    "deploy": {"deploy", "broker", "spliteasy"},
    "spliteasy_cli": {"spliteasy_cli", "deploy", "device_agent", "server_worker", "broker", "spliteasy"},
    "testing": {"testing", "spliteasy_cli", "device_agent", "server_worker", "broker", "spliteasy"},
}
ONLY_IN = {
    "aiormq": ("broker/amqp/",),
    "pamqp": ("broker/amqp/",),
    "redis": ("server_worker/store/redis/",),
    "typer": ("spliteasy_cli/",),
    "rich": ("spliteasy_cli/", "deploy/"),
    "cryptography": ("spliteasy/job/signing", "server_worker/store/keys", "server_worker/store/sealed"),
    "prometheus_client": ("spliteasy/observability/prometheus",),
    "aiohttp": ("spliteasy_cli/dashboard/", "broker/gateway/"),
    "opentelemetry": ("spliteasy/observability/otel",),
    "mlflow": ("spliteasy_cli/history/mlflow_history",),
    "tensorboard": (),
    "matplotlib": ("spliteasy_cli/history/report", "spliteasy/planning/picture", "spliteasy/privacy/picture"),
    "sklearn": (),
    "pickle": (),
    "marshal": (),
    "shelve": (),
}
LARGEST_FOLDER = 16
"""A folder of code holds at most this many files: beyond it, it wants shelves."""
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {"torch.load", "torch.export.load", "torch.export.save", "torch.jit.load", "torch.save"}


def part_of(path: Path) -> str:
    """The part of the system that a file belongs to."""
    return path.relative_to(ROOT).parts[0]


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """Every module that the file imports, anywhere in it, in absolute form."""
    package = module.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    tree = ast.parse(source)
    relative = path.relative_to(ROOT)
    module = ".".join(relative.with_suffix("").parts)
    found = []
    for name in set(imported(tree, module)):
        top = name.split(".")[0]
        if top in OURS and top not in MAY_IMPORT[part_of(path)]:
            found.append(f"{relative} imports {name}")
        allowed = ONLY_IN.get(top)
        if allowed is not None and not relative.as_posix().startswith(allowed):
            found.append(f"{relative} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in UNSAFE_NAMES and isinstance(node.ctx, ast.Load):
            found.append(f"{relative} uses {node.id}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in UNSAFE_ATTRIBUTES:
            found.append(f"{relative} uses {ast.unparse(node)}")
    return sorted(found)


def sources() -> list[Path]:
    return sorted(path for part in MAY_IMPORT if "." not in part for path in (ROOT / part).rglob("*.py"))


def test_every_file_imports_only_what_its_part_may() -> None:
    files = sources()
    assert len(files) > 20, "the sources were not found"
    assert [line for path in files for line in violations(path, path.read_text())] == []


def module_of(path: Path) -> str:
    """The dotted name that the file is imported by."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """Return for each module the modules that it imports, also for types alone and within functions.

    `files`: source text by module name.
    """
    return {
        module: {name for name in imported(ast.parse(source), module) if name in files} - {module}
        for module, source in files.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return found


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph(
        {module_of(path): path.read_text() for path in sources() if path.name != "__init__.py"}
    )
    assert circles(graph) == []


def test_a_circle_for_types_alone_is_found() -> None:
    files = {
        "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b import B",
        "b": "def f():\n    import a",
        "c": "import a",
    }
    assert circles(import_graph(files)) == [["a", "b"]]


def test_no_folder_is_a_drawer_of_everything() -> None:
    folders = {path.parent for path in sources()}
    large = {
        folder.relative_to(ROOT).as_posix(): len(list(folder.glob("*.py")))
        for folder in folders
        if len(list(folder.glob("*.py"))) > LARGEST_FOLDER
    }
    assert large == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("spliteasy/split.py", "import broker.transport.base"),
        ("spliteasy/split.py", "def f():\n    from spliteasy_cli import main"),
        ("spliteasy_cli/app.py", "from benchmarks import parity"),
        ("broker/protocol/frames.py", "from device_agent.agent import run_agent"),
        ("device_agent/agent.py", "import server_worker.store"),
        ("server_worker/worker.py", "from ..device_agent import agent"),
        ("server_worker/store/sqlite/store.py", "import redis.asyncio"),
        ("broker/transport/in_process.py", "from aiormq import Connection"),
        ("device_agent/training/data.py", "import sklearn.datasets"),
        ("spliteasy/split.py", "from tests import models"),
        ("device_agent/metrics.py", "import prometheus_client"),
        ("device_agent/agent.py", "from cryptography.exceptions import InvalidSignature"),
        ("broker/protocol/envelope.py", "import pickle"),
        ("server_worker/worker.py", "torch.load(path)"),
        ("spliteasy/graph/segment.py", "eval(text)"),
    ],
)
def test_each_rule_can_fail(path: str, source: str) -> None:
    assert violations(ROOT / path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("spliteasy_cli/app.py", "import broker, device_agent.agent\nfrom server_worker import worker"),
        ("server_worker/store/redis/store.py", "from redis.asyncio import Redis\nfrom . import base"),
        ("broker/amqp/connection.py", "import aiormq\nfrom spliteasy.errors import LinkError"),
    ],
)
def test_what_is_allowed_passes(path: str, source: str) -> None:
    assert violations(ROOT / path, source) == []


def test_an_agent_loads_neither_server_nor_store_nor_demo_packages() -> None:
    program = "import device_agent.agent, broker.amqp.connection, sys; print(' '.join(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "device_agent" in loaded
    assert (
        loaded
        & {
            "server_worker",
            "redis",
            "sklearn",
            "matplotlib",
            "typer",
            "deploy",
            "prometheus_client",
            "cryptography",
        }
        == set()
    )


def test_help_needs_no_torch() -> None:
    program = (
        "import sys\nfrom spliteasy_cli import main\ncode = main(['--help'])\n"
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stderr.split() == ["0", "False"], run.stderr
