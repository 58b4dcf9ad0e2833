"""Blobs by name, and a folder that has them as files: on a disk, or one that several machines share.

A blob that was put is there after a crash of the machine: file and folder are synced before `put` returns.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from server_worker.store.base import Blob
from spliteasy.errors import StoreFull, StoreUnavailable, UserError

_NAME = re.compile(r"[a-z0-9-][a-z0-9.-]*(/[a-z0-9-][a-z0-9.-]*){1,3}")
_PARTIAL = ".part"
"""Ends the name of a file that is not whole yet."""


class Blobs(Protocol):
    """Values by name, each written once. Safe for concurrent use by threads."""

    def put(self, name: str, value: Blob) -> None:
        """Write the value, so that no crash takes it back. Raises StoreUnavailable, StoreFull."""
        ...

    def read(self, name: str) -> bytes:
        """Return the value. Raises KeyError where there is none, StoreUnavailable."""
        ...

    def delete(self, name: str) -> None:
        """Delete the value, if it is there. Raises StoreUnavailable."""
        ...

    def children(self, name: str) -> Sequence[str]:
        """Return the full names one level below a name, in order. Raises StoreUnavailable."""
        ...


class FolderBlobs:
    """Blobs in a folder, one file each; names are paths in it."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError where the folder can't be made or written."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f"{secrets.token_hex(8)}{_PARTIAL}"
            probe.touch(mode=0o600)
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"the folder of blobs {folder} can't be used: {error.strerror}",
                hint="name a folder that this user may write: --blobs DIR",
            ) from None

    def put(self, name: str, value: Blob) -> None:
        path = self._path(name)
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
        with _disk_errors(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(partial, "xb", buffering=0) as file:
                    left = memoryview(value).cast("B")
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                partial.rename(path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                raise
            for folder in (path.parent, *path.parent.parents):
                _sync(folder)
                if folder == self._folder:
                    break

    def read(self, name: str) -> bytes:
        with _disk_errors(name):
            try:
                return self._path(name).read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                raise KeyError(name) from None

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _disk_errors(name), suppress(FileNotFoundError):
            path.unlink()
        with suppress(OSError):  # somebody put another beside it, or has deleted the folder
            path.parent.rmdir()

    def children(self, name: str) -> Sequence[str]:
        with _disk_errors(name):
            try:
                found = sorted(each.name for each in (self._folder / name).iterdir())
            except (FileNotFoundError, NotADirectoryError):
                return ()
        names = [f"{name}/{each}" for each in found if not each.endswith(_PARTIAL)]
        return [each for each in names if _NAME.fullmatch(each) is not None]

    def _path(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise KeyError(name)
        return self._folder / name


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"the folder of blobs has no room for {name}") from error
        raise StoreUnavailable(f"the folder of blobs can't be used: {error.strerror}") from error
