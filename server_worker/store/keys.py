"""The keys that values at rest are sealed with: a short list, the newest first.

From each key a session gets keys of its own (HKDF-SHA256): one for its values (AES-256-GCM), and one for its
labels (AES-SIV), so that no two sessions share one. Needs the package `cryptography` (extra `worker`), and
only where a key is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from spliteasy.errors import UserError

KEY_BYTES = 32
OPEN = "open"
"""The line that lets values be read that were never sealed."""

MAKE_HINT = "openssl rand -hex 32 makes a key; docs/operations.md, Sealing the store"


class StoreKey:
    """One key. It shows in no `repr`."""

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a store key has {KEY_BYTES} bytes, not {len(raw)}")
        self._raw = raw
        self.name: str = self._derived(8, "name").hex()
        """The key's name, which anybody may know; it follows from the key."""

    def __repr__(self) -> str:
        return f"StoreKey({self.name})"

    def for_values(self, session: str) -> bytes:
        """Return the session's key for AES-256-GCM."""
        return self._derived(32, "values", session)

    def for_labels(self, session: str) -> Any:
        """Return the session's AES-SIV cipher: the same text in the same place gives the same bytes."""
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        return AESSIV(self._derived(64, "labels", session))

    def _derived(self, length: int, *purpose: str) -> bytes:
        try:
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF
        except ModuleNotFoundError:
            raise UserError(
                "sealing the store needs the package cryptography", hint="pip install 'spliteasy[worker]'"
            ) from None
        info = orjson.dumps(["spliteasy store 1", *purpose])
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=info).derive(self._raw)


@dataclass(frozen=True, slots=True)
class StoreKeys:
    """The keys of a process: the first seals, all of them open. Without any, nothing is sealed."""

    keys: tuple[StoreKey, ...] = ()
    open_too: bool = field(default=True, kw_only=True)
    """Values that were never sealed are read too."""

    def named(self, name: str) -> StoreKey | None:
        return next((key for key in self.keys if key.name == name), None)


def parse_keys(text: str, *, source: str) -> StoreKeys:
    """The keys in a key file: 64 hexadecimal digits a line, the newest first; `#` begins a comment.

    A line `open` lets values be read that were never sealed. Raises UserError, which names `source`, never
    what the line says.
    """
    keys, open_too = [], False
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        if line == OPEN:
            open_too = True
        elif re.fullmatch(r"[0-9a-fA-F]{64}", line):
            keys.append(StoreKey(bytes.fromhex(line)))
        elif line:
            raise UserError(
                f"line {number} of {source} is no key: 64 hexadecimal digits are expected", hint=MAKE_HINT
            )
    if not keys:
        raise UserError(f"{source} holds no key", hint=MAKE_HINT)
    if len({key.name for key in keys}) < len(keys):
        raise UserError(f"{source} holds a key twice", hint="the newest is the first line, older ones follow")
    return StoreKeys(tuple(keys), open_too=open_too)
