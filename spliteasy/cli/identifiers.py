"""Names that people give to jobs, devices and workers: they become parts of queue names and keys."""

from __future__ import annotations

import re

from spliteasy.errors import UserError

IDENTIFIER = re.compile(r"[a-z0-9-]{1,63}")


def check_identifier(option: str, value: str) -> None:
    """Raises UserError where the value can't be a name."""
    if not IDENTIFIER.fullmatch(value):
        raise UserError(f"{option} {value!r} does not fit", hint="1 to 63 of the characters a-z, 0-9 and -")
