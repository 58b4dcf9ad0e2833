"""The fleet key: 32 bytes that the devices of a fleet share, and nobody else has."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from spliteasy.errors import UserError

KEY_BYTES = 32
MAKE_HINT = "`spliteasy fleet-key FILE` makes one; give every device of the fleet a copy"

FleetKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--fleet-key",
        envvar="SPLITEASY_FLEET_KEY",
        metavar="FILE",
        help="The key that the devices of this fleet share (`spliteasy fleet-key`): where a job averages "
        "their heads and tails, all draw the same first weights from it.",
        show_default=False,
    ),
]


def write_fleet_key(file: Path) -> None:
    """Make a key (mode 0600). Raises UserError where the file exists or can't be written."""
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secrets.token_hex(KEY_BYTES) + "\n")
    except FileExistsError:
        raise UserError(f"{file} exists already", hint="name another file") from None
    except OSError as error:
        raise UserError(f"{file} can't be written: {os.strerror(error.errno or 0).lower()}") from None


def read_fleet_key(file: Path) -> bytes:
    """Return the key in the file. Raises UserError, which never repeats what the file says."""
    from spliteasy_cli.support.enrolment import is_private

    try:
        stat, text = file.stat(), file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is not text").lower()
        raise UserError(f"the fleet key {file} can't be read: {reason}", hint=MAKE_HINT) from None
    if not is_private(stat.st_mode, stat.st_uid):
        raise UserError(f"the fleet key {file} can be read by others", hint=f"chmod 600 {file}")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UserError(f"{file} is no fleet key: it must hold 64 hexadecimal digits", hint=MAKE_HINT)
    return key


def own_fleet_key(folder: Path, secret: bytes | None) -> bytes:
    """Return the key of a fleet whose devices are all in this process: of a fixed secret, or kept in
    `folder`.
    """
    if secret is not None:
        from spliteasy.runtime.randomness import Key

        return Key(secret).at("fleet").stream(KEY_BYTES)
    file = folder / "fleet.key"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_fleet_key(file)
    return read_fleet_key(file)
