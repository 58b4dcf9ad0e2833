"""`module:function` in the user's files: found, or one line that says what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spliteasy.errors import DataError, JobError
from spliteasy.runtime.user_code import call, project_root, resolve


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A project with a package `mine`; import state is put back afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    package = tmp_path / "mine"
    package.mkdir()
    (tmp_path / "pyproject.toml").touch()
    (package / "__init__.py").touch()
    (package / "model.py").write_text(
        "def build():\n    return 5\n\nclass Net:\n    make = staticmethod(build)\n"
    )
    (package / "broken.py").write_text("x = 1\nraise ValueError('no\\nway')\n")
    (package / "needy.py").write_text("import not_installed_anywhere.sub\n")
    (package / "lazy.py").write_text("raise ModuleNotFoundError('could not import part A')\n")
    (package / "neighbour.py").write_text("from mine.model import build\nthing = 3\n")
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name == "mine" or name.startswith("mine."):
            del sys.modules[name]


def test_functions_are_found_from_the_project_root(project: Path) -> None:
    assert resolve("mine.model:build", root=project)() == 5
    assert resolve("mine.model:Net.make", root=project)() == 5
    assert resolve("mine.neighbour:build", root=project)() == 5


def test_the_project_root_is_the_nearest_marked_folder(project: Path) -> None:
    assert project_root(project / "mine" / "job.toml") == project
    (project / "mine" / "setup.py").touch()
    assert project_root(project / "mine" / "job.toml") == project / "mine"


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("mine.model", "is not module:function"),
        (":build", "is not module:function"),
        ("nowhere.model:build", "there is no module nowhere in "),
        ("mine.modle:build", "there is no module mine.modle in "),
        ("mine.model:biuld", "mine.model has no biuld (did you mean build?)"),
        ("mine.model:qqqqqq", "(define it in mine.model)"),
        ("mine.neighbour:thing", "is a int, not a function"),
        ("mine.broken:f", "importing mine.broken raised ValueError: no way (broken.py, line 2)"),
        ("mine.lazy:f", "importing mine.lazy raised ModuleNotFoundError: could not import part A (lazy.py"),
        ("mine.needy:f", "needs not_installed_anywhere, which is not installed (pip install not_installed"),
    ],
)
def test_a_mistake_gets_one_line(project: Path, reference: str, told: str) -> None:
    with pytest.raises(JobError) as caught:
        resolve(reference, root=project, what="model.factory")
    assert told in str(caught.value)
    assert str(caught.value).startswith("model.factory = ")
    assert "\n" not in str(caught.value)


def test_what_the_function_raises_becomes_one_line() -> None:
    def build() -> None:
        raise KeyError("x")

    with pytest.raises(
        DataError, match=r"--data = 'm:f' raised KeyError: 'x' \(test_importing.py, line \d+\)"
    ):
        call(build, reference="m:f", what="--data", error=DataError)
