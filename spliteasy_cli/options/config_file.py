"""`--config FILE`: the options of a command from a TOML file.

The file names each option as the command line does, with or without its dashes: `memory_mib = 2048` says the
same as `--memory-mib 2048`. An option on the command line wins over the environment, the environment over the
file, and the file over the default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spliteasy.errors import UserError


def read_options(path: Path, known: frozenset[str]) -> dict[str, str]:
    """Return the file's values by the name of their option, as one would type them. Raises UserError."""
    import tomllib

    try:
        said = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is not text").lower()
        raise UserError(f"the file of options {path} can't be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is no TOML: {error}", hint="write lines like memory_mib = 2048") from None
    options: dict[str, str] = {}
    for key, value in said.items():
        name = key.removeprefix("--").replace("-", "_")
        if name not in known:
            raise UserError(
                f"{path}: there is no option {key}", hint=f"it may name: {', '.join(sorted(known))}"
            )
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise UserError(f"{path}: {key} is neither a text nor a number", hint=f"{name} = VALUE")
        if name in options:
            raise UserError(f"{path}: {key} is named twice", hint="leave one of them out")
        options[name] = str(value)
    return options


def _apply(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not context.resilient_parsing:
        names = {str(each.name) for each in context.command.params}
        known = frozenset(name for name in names if name not in ("config", "help") and name[0] != "_")
        context.default_map = {**read_options(path, known)}
    return path


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        envvar="SPLITEASY_CONFIG",
        is_eager=True,
        callback=_apply,
        help="Read options from this file too, such as memory_mib = 2048. The command line and the "
        "environment win over it.",
        show_default=False,
    ),
]
