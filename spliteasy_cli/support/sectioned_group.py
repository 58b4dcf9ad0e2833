"""The plain `--help` of a group of commands, which needs no rich: that takes longer to load than the rest."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class SectionedGroup(TyperGroup):
    """A group whose plain `--help` lists its commands by section, each with its whole summary."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections in the order in which their first commands were registered."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                section = getattr(command, "rich_help_panel", None) or "Commands"
                sections.setdefault(section, []).append((name, command.get_short_help_str(limit=200)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
