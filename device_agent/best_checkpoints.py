"""The checkpoints of the best evaluations so far, in a folder of their own.

A checkpoint is kept as a second name of its file, so that it takes no room twice. Kept are the newest that
was the best at or before the device's oldest checkpoint, and all after it: wherever the training goes on
from, the best one of that course is here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from spliteasy.runtime.durable_files import remove_temporaries, sync_folder, write_file

_STEP_DIGITS = 12


def file_name(step: int) -> str:
    """Return the name of a checkpoint's file."""
    return f"{step:0{_STEP_DIGITS}d}"


class BestCheckpoints:
    """The folder at `path`. Methods raise OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self) -> None:
        """Make the folder if there is none, and remove what a kill has left."""
        self._path.mkdir(mode=0o700, exist_ok=True)
        remove_temporaries(self._path)

    def path(self, step: int) -> Path:
        return self._path / file_name(step)

    def keep(self, checkpoint: Path, step: int) -> None:
        """Keep that file as the best of `step`; durable on return. Where the file system has one name a file,
        it is copied."""
        try:
            os.link(checkpoint, self.path(step))
        except FileExistsError:
            return
        except OSError:
            write_file(self.path(step), checkpoint.read_bytes(), private=True)
        sync_folder(self._path)

    def prune(self, *, oldest: int) -> None:
        """Drop what no course needs that goes on from the checkpoint `oldest` or a newer one."""
        reached = max((step for step in self._steps() if step <= oldest), default=0)
        self.drop(lambda step: step < reached)

    def drop(self, is_doomed: Callable[[int], bool]) -> None:
        """Delete those of the steps that are doomed, durably."""
        doomed = [step for step in self._steps() if is_doomed(step)]
        for step in doomed:
            self.path(step).unlink(missing_ok=True)
        if doomed:
            sync_folder(self._path)

    def _steps(self) -> list[int]:
        return sorted(int(path.name) for path in self._path.iterdir() if path.name.isdecimal())
