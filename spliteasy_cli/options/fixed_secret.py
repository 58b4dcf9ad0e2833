"""`--secret`: a fixed secret in place of the devices' own, for a run that has to be repeated bit for bit."""

from __future__ import annotations

from typing import Annotated

import typer

from spliteasy.errors import UserError

SECRET_BYTES = 32

SecretOption = Annotated[
    str | None,
    typer.Option(
        "--secret",
        metavar="HEX",
        help="64 hexadecimal digits that the devices draw their weights, order and masks from, so that a run "
        "can be repeated. For tests: anybody who knows them can undo what they hide.",
        show_default="each device's own, from the operating system",
    ),
]


def fixed_secret(text: str | None) -> bytes | None:
    """The bytes of `--secret`. Raises UserError."""
    if text is None:
        return None
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:  # what was typed is not repeated: an error may end up in a log
        raise UserError("--secret is not 64 hexadecimal digits", hint="openssl rand -hex 32 makes one")
    return secret
