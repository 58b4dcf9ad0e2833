"""Sizes, times, and text of others, for a person."""

from __future__ import annotations

import unicodedata

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of what changes a terminal or a line instead of being shown: control characters,
changes of direction and other formats, halves of pairs, line and paragraph separators."""


def shown(text: str, *, lines: bool = False) -> str:
    """The text with what is not meant to be seen written out (`\\x1b`), as for a terminal or a log.

    For text of somebody else's. `lines`: it may have several.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = "\n\t" if lines else ""
    return "".join(
        each if each in kept or unicodedata.category(each) not in HIDDEN else _escaped(each) for each in text
    )


def _escaped(each: str) -> str:
    code = ord(each)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def size(count: float) -> str:
    """`1.5 MB`: decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def span(seconds: float) -> str:
    """`3 min`: in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
