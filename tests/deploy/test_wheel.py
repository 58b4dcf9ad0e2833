"""The wheel holds all that the packages consist of, and the same sources make the same bytes."""

from __future__ import annotations

import hashlib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.wheel import PACKAGES, ROOT, build_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def is_shipped(path: Path) -> bool:
    """Return whether a file belongs to the wheel: of the browser's agent, what was built and nothing else."""
    return not path.is_relative_to("device_agent/web") or path.is_relative_to("device_agent/web/dist")


def test_it_holds_every_file_of_the_packages(wheel: Path) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and is_shipped(path.relative_to(ROOT))
    }
    assert {"deploy/compose.yaml", "deploy/install_deps.sh", "spliteasy/py.typed"} <= sources
    assert {"device_agent/web/dist/page.js", "device_agent/web/dist/kernels.wasm"} <= sources
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert sorted(sources - packed) == []
    assert sorted(packed - sources) == []


def test_the_same_sources_make_the_same_bytes(wheel: Path, tmp_path: Path) -> None:
    again = build_wheel(tmp_path)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(wheel.read_bytes()).digest()


def test_the_extras_that_documents_name_are_there(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel)
    name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
    told = message_from_string(files.read(name).decode())
    extras = set(told.get_all("Provides-Extra", []))
    assert {"agent", "worker", "images", "fast", "metrics", "dashboard", "gateway", "all"} <= extras
    base = {Requirement(line).name for line in told.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert {"torch", "aiormq"} <= base
    assert not base & {"redis", "prometheus-client", "scikit-learn", "matplotlib"}
