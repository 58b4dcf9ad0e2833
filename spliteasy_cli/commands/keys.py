"""`spliteasy keygen` and `fleet-key`, and which keys other commands use: the operator's, and the store's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.options.fleet_key import write_fleet_key
from spliteasy_cli.support.endpoints import LOCAL_STACK, local_stack_is
from spliteasy_cli.support.log_setup import set_up_logging

if TYPE_CHECKING:
    from server_worker.store import StoreKeys

LOCAL_KEY = LOCAL_STACK.with_name("operator.key")
"""The operator's key of the local stack, which makes one itself."""

SignOption = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        envvar="SPLITEASY_SIGN",
        metavar="KEY",
        help="Sign the job with this operator's key (see `spliteasy keygen`); by default the local stack's.",
        show_default=False,
    ),
]
OperatorKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--operator-key",
        envvar="SPLITEASY_OPERATOR_KEY",
        metavar="KEY.pub",
        help="The device loads jobs only that this key has signed; by default the local stack's.",
        show_default=False,
    ),
]

LOCAL_STORE_KEY = LOCAL_STACK.with_name("store.key")
"""The store's key of the local stack, which makes one itself."""

StoreKeyOption = Annotated[
    Path | None,
    typer.Option(
        "--store-key",
        envvar="SPLITEASY_STORE_KEY",
        metavar="FILE",
        help="Seal requests and snapshots in the store with the first key of this file, and open them with "
        "any; by default the local stack's.",
        show_default=False,
    ),
]


def keygen(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file for the private key.")] = Path(
        "operator.key"
    ),
) -> None:
    """Make an operator's key (Ed25519), whose owner can sign jobs that your devices load.

    Keep it off the workers. Devices get the public half, FILE.pub, by
    `spliteasy device enroll --operator-key`.
    """
    set_up_logging(context, "warning")
    public = write_key(file)
    typer.echo(f"{file}: keep it where nobody else reads it; sign with `spliteasy submit JOB --sign {file}`")
    typer.echo(f"{public}: for devices, with `spliteasy device enroll NAME --operator-key {public}`")


def fleet_key(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the key goes.")] = Path("fleet.key"),
) -> None:
    """Make the key that the devices of a fleet share, whose heads and tails are averaged.

    Copy it to every device of the fleet, and to nobody else: broker, store and workers must not have it.
    """
    set_up_logging(context, "warning")
    write_fleet_key(file)
    typer.echo(f"{file}: for the devices of the fleet alone, with `spliteasy agent --fleet-key {file}`")


def write_key(file: Path) -> Path:
    """Write a new private key (mode 0600) and its public half beside it, whose name is returned.

    Raises UserError where there is one already: devices would take nothing that a new one signs.
    """
    from spliteasy.job.signing import new_key

    private, public = new_key()
    beside = public_half(file)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(private)
        beside.write_bytes(public)
    except FileExistsError:
        raise UserError(f"{file} exists already", hint="name another file") from None
    except OSError as error:
        raise UserError(f"{file} can't be written: {os.strerror(error.errno or 0).lower()}") from None
    return beside


def public_half(file: Path) -> Path:
    """Return the path of the public key that belongs to the private one in `file`."""
    return file.with_name(f"{file.name}.pub")


def signing_key(option: Path | None, store: str) -> Path | None:
    """Return the private key to sign with; None where none is named and the store is not the local one."""
    return option or (LOCAL_KEY if local_stack_is(store, "store") and LOCAL_KEY.exists() else None)


def operator_key(option: Path | None, broker: str) -> str | None:
    """The public key that a device of that broker is to trust; None where there is none. Raises UserError."""
    public = public_half(LOCAL_KEY)
    file = option or (public if local_stack_is(broker) and public.exists() else None)
    if file is None:
        return None
    from spliteasy.job.signing import read_public_key

    return read_public_key(file)


def store_keys(option: Path | None, store: str) -> StoreKeys:
    """The keys for that store; none where nobody named a file, and the store is not the local stack's.

    Raises UserError where the file can't be read, others may read it, or it holds no keys.
    """
    from server_worker.store import StoreKeys
    from server_worker.store.keys import MAKE_HINT, parse_keys
    from spliteasy_cli.support.enrolment import is_private

    local = LOCAL_STORE_KEY if local_stack_is(store, "store") and LOCAL_STORE_KEY.exists() else None
    if (file := option or local) is None:
        return StoreKeys()
    try:
        stat, text = file.stat(), file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = (getattr(error, "strerror", None) or "it is not text").lower()
        raise UserError(f"the store key {file} can't be read: {reason}", hint=MAKE_HINT) from None
    if not is_private(stat.st_mode, stat.st_uid):
        raise UserError(f"the store key {file} can be read by others", hint=f"chmod 600 {file}")
    return parse_keys(text, source=f"the store key {file}")
