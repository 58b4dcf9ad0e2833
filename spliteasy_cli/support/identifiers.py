"""Names that people give to jobs, devices and workers: they become parts of queue names and keys."""

from __future__ import annotations

import re

from spliteasy.errors import UserError

IDENTIFIER = re.compile(r"[a-z0-9-]{1,63}")


_JOB = re.compile(rf"{IDENTIFIER.pattern}(@[0-9a-f]{{64}})?")


def check_job(option: str, value: str) -> None:
    """Raises UserError where the value is neither NAME nor NAME@DIGEST."""
    if not _JOB.fullmatch(value):
        raise UserError(
            f"{option} {value!r} does not fit", hint="NAME, or NAME@ and the 64 digits of one version"
        )


def check_identifier(option: str, value: str) -> None:
    """Raises UserError where the value can't be a name."""
    if not IDENTIFIER.fullmatch(value):
        raise UserError(f"{option} {value!r} does not fit", hint="1 to 63 of the characters a-z, 0-9 and -")
