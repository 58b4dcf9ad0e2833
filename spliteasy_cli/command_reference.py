"""Prints docs/commands.md, which is written from the parser (`make docs`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from spliteasy_cli.app import app

HEAD = """# Commands

This page is written from the parser by `make docs`; `spliteasy COMMAND --help` says the same.

`--debug` and `--log-level LEVEL` may come before or behind every command. An option wins over its
environment variable, the variable over a `--config` file, and that over the default. A command exits with 0
when it is done, with 1 after an error that can pass, with 2 after one that somebody has to mend, and with 130
after a second Ctrl-C.
"""


def reference() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_commands(get_command(app), "spliteasy")])


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield _section(command, f"{path} {name}")


def _section(command: Any, path: str) -> str:
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    usage = " ".join([path, *(_metavar(each) for each in arguments), "[OPTIONS]"])
    lines = [f"## `{path}`", "", inspect.cleandoc(command.help or ""), "", f"    {usage}", ""]
    if shown:
        lines += ["| | | default |", "| --- | --- | --- |"]
        lines += [_row(each) for each in (*arguments, *options)]
        lines.append("")
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        metavar = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
        name = f"`{', '.join(parameter.opts)}{metavar}`"
    help_text = " ".join((parameter.help or "").split())
    if parameter.envvar:
        help_text += f" (`{parameter.envvar}`)"
    return (
        "| " + " | ".join(cell.replace("|", "\\|") for cell in (name, help_text, _default(parameter))) + " |"
    )


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if not parameter.show_default or parameter.default in (None, False):
        return ""
    return f"`{parameter.default}`"


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


if __name__ == "__main__":
    print(reference(), end="")
