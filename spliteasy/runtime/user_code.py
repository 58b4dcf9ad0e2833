"""Resolve `module:function` in the user's own files.

Only commands that a person runs on their own files come here: submit (the model), agent (the data).
Nothing that came over the wire is ever resolved.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spliteasy.errors import JobError, UserError

PROJECT_MARKS = ("pyproject.toml", "setup.py", ".git")


def project_root(path: Path) -> Path:
    """The nearest folder above the file `path` that looks like a project's root, else the file's own."""
    folder = path.resolve().parent
    for candidate in (folder, *folder.parents):
        if any((candidate / mark).exists() for mark in PROJECT_MARKS):
            return candidate
    return folder


def resolve(
    reference: str, *, root: Path | None = None, what: str = "it", error: type[UserError] = JobError
) -> Callable[..., Any]:
    """Return the function that `module:function` names, looked up from `root` (default: the current folder).

    `root` is put first on `sys.path` and stays there: the module may import its neighbours later.
    `what` names the setting in errors. Raises `error`.
    """
    module_name, colon, path = reference.partition(":")
    if not (colon and module_name and path):
        raise error(
            f"{what} = {reference!r} is not module:function", hint="such as examples.digits:device_data"
        )
    root = Path.cwd() if root is None else root.resolve()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
    found: Any = _module(module_name, reference, root, what, error)
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=3)
            raise error(
                f"{what} = {reference!r}: {module_name} has no {part}",
                hint=f"did you mean {' or '.join(near)}?" if near else f"define it in {module_name}",
            )
        found = getattr(found, part)
    if not callable(found):
        raise error(f"{what} = {reference!r} is a {type(found).__name__}, not a function")
    function: Callable[..., Any] = found
    return function


def call(
    function: Callable[..., Any], *args: Any, reference: str, what: str, error: type[UserError] = JobError
) -> Any:
    """Call the user's function; what it raises becomes `error`, one line that says where."""
    try:
        return function(*args)
    except UserError:
        raise
    except Exception as raised:
        raise error(f"{what} = {reference!r} raised {told(raised)}") from raised


def _module(name: str, reference: str, root: Path, what: str, error: type[UserError]) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name is None:  # a library's own words, for something that it can't use itself
            raise error(f"{what} = {reference!r}: importing {name} raised {told(missing)}") from missing
        if not (name == missing.name or name.startswith(missing.name + ".")):
            raise error(
                f"{what} = {reference!r}: importing {name} needs {missing.name}, which is not installed",
                hint=f"pip install {missing.name.partition('.')[0]}",
            ) from missing
        raise error(
            f"{what} = {reference!r}: there is no module {missing.name} in {root}",
            hint="start the command in the folder that the module's name counts from",
        ) from missing
    except Exception as raised:
        raise error(f"{what} = {reference!r}: importing {name} raised {told(raised)}") from raised


def told(raised: BaseException) -> str:
    """Say on one line what was raised, and where: `ValueError: text (file.py, line 3)`."""
    text = " ".join(str(raised).split())
    frames = traceback.extract_tb(raised.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(raised).__name__}: {text}{where}" if text else f"{type(raised).__name__}{where}"
