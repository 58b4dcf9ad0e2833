"""Build the project's wheel: from a copy of the sources, so that nothing older gets into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from spliteasy.errors import SplitEasyError, UserError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("spliteasy", "spliteasy_cli", "broker", "device_agent", "server_worker", "deploy", "testing")
FILES = ("pyproject.toml", "README.md", "LICENSE")
EPOCH = "315532800"
"""1980, the oldest that a zip file can say: the same sources give the same bytes."""

BUILDS_WHEELS = (70, 1)
"""The first setuptools that needs no other package to build a wheel."""


def build_wheel(out: Path) -> Path:
    """Return the wheel, put into the folder `out`. Raises UserError, SplitEasyError."""
    missing = [name for name in (*FILES, *PACKAGES) if not (ROOT / name).exists()]
    if missing:
        raise UserError(
            f"{ROOT} is no checkout: {missing[0]} is missing", hint="wheels are built in a checkout"
        )
    with tempfile.TemporaryDirectory(prefix="spliteasy-wheel-") as folder:
        copy = Path(folder)
        for name in PACKAGES:
            unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", "node_modules")
            shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
        for name in FILES:
            shutil.copy2(ROOT / name, copy / name)
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        if _setuptools() >= BUILDS_WHEELS:
            command.append("--no-build-isolation")  # nothing is downloaded then
        built = subprocess.run(
            [*command, "--wheel-dir", str(out), str(copy)],
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
            capture_output=True,
            text=True,
            check=False,
        )
    if built.returncode:
        raise SplitEasyError(f"the wheel can't be built: {' '.join(built.stderr.split())[-500:]}")
    return next(out.glob("spliteasy-*.whl"))


def _setuptools() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version("setuptools").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return (0,)
