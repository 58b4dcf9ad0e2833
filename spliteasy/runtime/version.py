"""This installation's version, as others see it."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

_TOLD = re.compile(r"[0-9A-Za-z.+-]{1,40}")


@cache
def version() -> str:
    """Return the version of the installed package, or `unknown` where it runs from a folder or its version is
    malformed."""
    try:
        found = metadata.version("spliteasy")
    except metadata.PackageNotFoundError:
        return "unknown"
    return found if _TOLD.fullmatch(found) else "unknown"
