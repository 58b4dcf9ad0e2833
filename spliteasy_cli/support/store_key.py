"""The key file of the store: which one a command uses, and what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spliteasy.errors import UserError
from spliteasy_cli.support.endpoints import LOCAL_STACK, local_stack_is
from spliteasy_cli.support.enrolment import is_private

if TYPE_CHECKING:
    from server_worker.store import StoreKeys

LOCAL_STORE_KEY = LOCAL_STACK.with_name("store.key")
"""Of the local stack, which makes one itself."""

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


def store_keys(option: Path | None, store: str) -> StoreKeys:
    """The keys for that store; none where nobody named a file, and the store is not the local stack's.

    Raises UserError where the file can't be read, others may read it, or it holds no keys.
    """
    from server_worker.store import StoreKeys
    from server_worker.store.keys import MAKE_HINT, parse_keys

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
