"""Files that are either wholly there or not at all, whatever is killed or loses power meanwhile."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

TEMPORARY = ".tmp-"
"""The name of a file that is being written begins with this. A process that finds one which nobody writes may
delete it."""


def write_file(path: Path, *chunks: bytes, private: bool = False) -> None:
    """Write `chunks` to `path` and make it durable: temporary file, fsync, rename, fsync of the folder.

    `private`: nobody but the owner reads it (mode 0600), from its first byte on.

    OSError (disk full, no permission) leaves what was at `path` before, and no temporary file.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
    try:
        _write(temporary, *chunks, private=private)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Make the folder `path` with `files`, all or nothing. FileExistsError if something is there already."""
    if path.exists():
        raise FileExistsError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}")
    try:
        temporary.mkdir()
        for name, data in files.items():
            _write(temporary / name, data)
        sync_folder(temporary)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames and deletions within a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporaries(folder: Path) -> None:
    """Delete what a killed process left half-written in `folder`."""
    for path in folder.glob(TEMPORARY + "*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _write(path: Path, *chunks: bytes, private: bool = False) -> None:
    with open(path, "wb", opener=_private if private else None) as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
