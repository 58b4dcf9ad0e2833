"""A store whose values at rest are sealed: requests, and tensors of snapshots.

It lies over any store and changes neither its records nor its rules. Each value becomes

    nonce (12 random bytes) ‖ AES-256-GCM of the value ‖ tag (16 bytes)

under a key of the session's own, bound to session, step, attempt and index (or tensor), so that it opens in
its own place only. Beside the values of a step lies a label:

    sealed1:KEY:ATTEMPT:NONCE:AES-SIV of the gradient digest, or of the names of the tensors

It says which key and which attempt they are of, takes the place of the gradient digest of a log entry, and
is one more tensor of a snapshot. A commit must be the same when it is repeated, so the label is a function of
what it is of (the values are not: their nonces are random); it repeats only where all of that does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson

from server_worker.store.base import Attempt, Blob, CommitOutcome, LogEntry, Owner, Store
from server_worker.store.fleets import Fleets
from server_worker.store.keys import StoreKey, StoreKeys
from spliteasy.errors import KeyMissing, SealBroken, UserError

LABEL = "sealed1"
"""Begins a label, and names the tensor of a snapshot that has one."""

NONCE_BYTES, TAG_BYTES = 12, 16
SEAL_BYTES = NONCE_BYTES + TAG_BYTES
"""A sealed value is longer by this."""

INLINE_BYTES = 1 << 20
"""More than this is sealed and opened in a thread of its own: other sessions go on meanwhile."""

CHECKED = 100
"""Sessions that are tried for one whose log can be opened, the newest first."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of values: a step of a session within an attempt; and the key that they are sealed with."""

    key: StoreKey
    session: str
    step: int
    attempt: Attempt

    def label(self, text: bytes) -> str:
        sealed = self.key.for_labels(self.session).encrypt(text, [self._place("label")])
        return ":".join(
            (LABEL, self.key.name, str(self.attempt.number), self.attempt.nonce, bytes(sealed).hex())
        )

    def label_text(self, sealed: bytes) -> bytes:
        """The text of its label. Raises SealBroken."""
        opened = self.key.for_labels(self.session)
        return self._checked("the label", lambda: opened.decrypt(sealed, [self._place("label")]))

    def seal(self, value: Blob, *where: str | int) -> bytearray:
        """The value, sealed for that place of the step."""
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        plain, nonce = memoryview(value).cast("B"), os.urandom(NONCE_BYTES)
        cipher = Cipher(algorithms.AES(self.key.for_values(self.session)), modes.GCM(nonce)).encryptor()
        cipher.authenticate_additional_data(self._place(*where))
        sealed = bytearray(len(plain) + SEAL_BYTES)
        sealed[:NONCE_BYTES] = nonce
        # In place: one copy less of what may be tens of MiB.
        cipher.update_into(plain, memoryview(sealed)[NONCE_BYTES:])
        cipher.finalize()
        sealed[-TAG_BYTES:] = cipher.tag
        return sealed

    def open(self, sealed: bytes, *where: str | int) -> bytes:
        """The value that was sealed for that place. Raises SealBroken."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        view, aad = memoryview(sealed), self._place(*where)
        cipher = AESGCM(self.key.for_values(self.session))
        what = " ".join(map(str, where))
        return self._checked(what, lambda: cipher.decrypt(bytes(view[:NONCE_BYTES]), view[NONCE_BYTES:], aad))

    def _place(self, *where: str | int) -> bytes:
        return orjson.dumps([self.session, self.step, self.attempt.number, self.attempt.nonce, *where])

    def _checked(self, what: str, opened: Callable[[], bytes]) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            return opened()
        except (InvalidTag, ValueError):  # ValueError: too short to have been sealed
            raise SealBroken(self.session, self.step, what) from None


class SealedStore:
    def __init__(self, store: Store, keys: StoreKeys) -> None:
        self._store = store
        self._keys = keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @property
    def fleets(self) -> Fleets:
        return cast(Fleets, SealedFleets(self._store.fleets, self._keys))

    async def put_request(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, index: int, body: Blob
    ) -> None:
        if (at := self._sealing(session, step, attempt)) is not None:
            whole = body
            body = await _run(memoryview(body).nbytes, lambda: at.seal(whole, "request", index))
        await self._store.put_request(
            session, attempt=attempt, owner=owner, step=step, index=index, body=body
        )

    async def commit(
        self,
        session: str,
        *,
        attempt: Attempt,
        owner: Owner,
        step: int,
        requests: int,
        gradient_digest: str,
        oldest_checkpoint: int,
    ) -> CommitOutcome:
        at = self._sealing(session, step, attempt)
        return await self._store.commit(
            session,
            attempt=attempt,
            owner=owner,
            step=step,
            requests=requests,
            gradient_digest=gradient_digest if at is None else at.label(gradient_digest.encode()),
            oldest_checkpoint=oldest_checkpoint,
        )

    async def put_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, tensors: Mapping[str, Blob]
    ) -> CommitOutcome:
        if (at := self._sealing(session, step, attempt)) is not None:
            whole = tensors

            def sealed() -> dict[str, Blob]:
                found: dict[str, Blob] = {name: at.seal(whole[name], "tensor", name) for name in whole}
                return {**found, LABEL: at.label(orjson.dumps(sorted(whole))).encode()}

            tensors = await _run(sum(memoryview(each).nbytes for each in whole.values()), sealed)
        return await self._store.put_snapshot(
            session, attempt=attempt, owner=owner, step=step, tensors=tensors
        )

    async def read_snapshot(self, session: str, step: int) -> dict[str, bytes]:
        found = await self._store.read_snapshot(session, step)
        if step == 0 and not found:
            return found
        label = found.pop(LABEL, b"").decode(errors="replace")
        if (at := self._of(label, session, step)) is None:
            return found
        if at.label_text(_sealed_text(label)) != orjson.dumps(sorted(found)):
            raise SealBroken(session, step, "the list of tensors")

        def opened() -> dict[str, bytes]:
            return {name: at.open(value, "tensor", name) for name, value in found.items()}

        return await _run(sum(map(len, found.values())), opened)

    async def read_log(self, session: str, *, after: int, upto: int) -> AsyncIterator[LogEntry]:
        async for entry in self._store.read_log(session, after=after, upto=upto):
            at = self._of(entry.gradient_digest, session, entry.step)
            yield entry if at is None else await _run(sum(map(len, entry.requests)), _opening(at, entry))

    def _sealing(self, session: str, step: int, attempt: Attempt) -> Place | None:
        """Return the place that seals values of the step, or None where nothing is sealed."""
        return Place(self._keys.keys[0], session, step, attempt) if self._keys.keys else None

    def _of(self, label: str, session: str, step: int) -> Place | None:
        """Return the place that opens the values beside that label, or None for values that were never
        sealed.

        Raises KeyMissing where the keys can't or may not, SealBroken where the label is none.
        """
        if not label.startswith(f"{LABEL}:"):
            if self._keys.open_too:
                return None
            raise KeyMissing(
                f"session {session}: step {step} lies in the store in the open, and only sealed values are "
                "taken here",
                hint="add a line `open` at the end of the key file until such sessions are sealed, "
                f"or delete the session with `spliteasy session forget {session}`",
            )
        try:
            _, name, number, nonce, _ = label.split(":")
            attempt = Attempt(number=int(number), nonce=nonce)
        except ValueError:
            raise SealBroken(session, step, "the label") from None
        if (key := self._keys.named(name)) is None:
            raise KeyMissing(
                f"session {session}: step {step} is sealed with the key {name}, which is not here",
                hint="add that key to the key file, after the newest"
                if self._keys.keys
                else "name the workers' key file: --store-key FILE, or SPLITEASY_STORE_KEY=FILE",
            )
        return Place(key, session, step, attempt)


class SealedFleets:
    """A fleet's rounds, with weights sealed for their fleet and name; records and devices lie in the open."""

    def __init__(self, fleets: Fleets, keys: StoreKeys) -> None:
        self._fleets = fleets
        self._keys = keys

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fleets, name)

    async def put_weights(self, fleet: str, name: str, body: Blob, *, digest: str) -> str:
        if self._keys.keys:
            key, whole = self._keys.keys[0], body
            prefix = f"{LABEL}:{key.name}:".encode()
            place = Place(key, fleet, 0, Attempt(number=0, nonce=name))
            body = prefix + await _run(memoryview(body).nbytes, lambda: place.seal(whole, "weights"))
        return await self._fleets.put_weights(fleet, name, body, digest=digest)

    async def read_weights(self, fleet: str, name: str) -> bytes:
        found = await self._fleets.read_weights(fleet, name)
        if not found.startswith(f"{LABEL}:".encode()):
            if self._keys.open_too:
                return found
            raise KeyMissing(
                f"fleet {fleet}: the weights {name} lie in the store in the open, and only sealed values are "
                "taken here",
                hint="add a line `open` at the end of the key file until that round is over",
            )
        _, named, value = found.split(b":", 2)
        if (key := self._keys.named(named.decode(errors="replace"))) is None:
            raise KeyMissing(
                f"fleet {fleet}: the weights {name} are sealed with another key, which is not here",
                hint="add that key to the key file, after the newest",
            )
        place = Place(key, fleet, 0, Attempt(number=0, nonce=name))
        return await _run(len(value), lambda: place.open(value, "weights"))


def sealed(store: Store, keys: StoreKeys) -> Store:
    """Wrap the store: what is written into it is sealed with the first of the keys (as it is without any),
    and what is read is opened, or refused by KeyMissing and SealBroken. It owns `store`.
    """
    return cast(Store, SealedStore(store, keys))


async def check_keys(store: Store) -> None:
    """Return where the log of the session that was served last opens, or there is none.

    Raises UserError where the keys are not those of the store: a worker had better not begin.
    """
    for meta in await store.newest_sessions(CHECKED):
        if meta.committed <= meta.snapshots[0]:
            continue
        try:
            async for _ in store.read_log(meta.session, after=meta.committed - 1, upto=meta.committed):
                return
        except KeyMissing as error:
            raise UserError(error.message, hint=error.hint) from None
        except (KeyError, SealBroken):
            continue  # it has just gone, or the error comes when its device does


def _opening(at: Place, entry: LogEntry) -> Callable[[], LogEntry]:
    def opened() -> LogEntry:
        digest = at.label_text(_sealed_text(entry.gradient_digest))
        requests = tuple(at.open(body, "request", index) for index, body in enumerate(entry.requests))
        return LogEntry(step=entry.step, requests=requests, gradient_digest=digest.decode())

    return opened


def _sealed_text(label: str) -> bytes:
    """Return what AES-SIV made of a label's text. A text that is no hexadecimal number opens as
    nothing does."""
    try:
        return bytes.fromhex(label.rpartition(":")[2])
    except ValueError:
        return b""


async def _run(nbytes: int, work: Callable[[], _T]) -> _T:
    return work() if nbytes <= INLINE_BYTES else await asyncio.to_thread(work)
