"""File descriptors: whether this process has used up its own, which libraries tell in misleading words."""

from __future__ import annotations

import errno
import os
import resource
from typing import Final

LACK_HINT: Final = "allow it more: `ulimit -n 4096` in a shell, LimitNOFILE=4096 in a systemd unit"


def allow_descriptors(count: int) -> None:
    """Let this process open so many files, as far as its hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        count = min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def lack_of_descriptors(error: BaseException | None) -> bool:
    """Return whether the error is, or follows from, a lack of file descriptors of this process or machine.

    What failed may hide its reason (a name that could not be looked up, a file that could not be opened), so
    that it is tried here whether one more can be opened.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as lack:
        return lack.errno in (errno.EMFILE, errno.ENFILE)
    return False
