"""A link as a QR code in the terminal, which a phone's camera reads."""

from __future__ import annotations

import io
import sys


def shown(link: str) -> str | None:
    """The code in half blocks; None where its package is missing or the output is no terminal."""
    try:
        import segno
    except ModuleNotFoundError:
        return None
    if not sys.stdout.isatty():
        return None
    text = io.StringIO()
    segno.make(link, error="l").terminal(out=text, compact=True)
    return text.getvalue()
