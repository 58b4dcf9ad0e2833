"""URLs with passwords in them, taken apart so that no error repeats a piece of one."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

QUOTE_HINT: Final = (
    "quote what is special in user and password: %40 for @, %2F for /, %3F for ?, %23 for #, %25 for %"
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)


def scheme_of(url: str) -> str:
    """Return the text before `://`. It is empty where that is no scheme, since it may be a password then."""
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator and _SCHEME.fullmatch(scheme) else ""


def places_of(url: str) -> list[str]:
    """Return the URLs that a URL with several hosts stands for: there are commas between these.

    Account, path and query are those of all. Raises nothing: `split_url` checks each of them.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return [url]
    account, at, places = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{account}{at}{place}")) for place in places.split(",")]


def check_places(url: str) -> None:
    """Check every place of a URL of several. Raises ValueError as `split_url` does."""
    for place in places_of(url):
        if split_url(place).netloc.endswith("@"):
            raise ValueError("a comma without a host beside it")


def split_url(url: str) -> SplitResult:
    """Split the URL as `urlsplit` does, and check host and port.

    Raises ValueError with a reason that repeats nothing of the URL. An `@` behind the host is refused: the
    password has a `/`, `?` or `#` then that is not quoted, and what looks like the host is a piece of it.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("a host or port that is not valid") from None
    if "@" in parts.path + parts.query + parts.fragment:
        raise ValueError("an @ behind its host, as where a password is not quoted")
    if re.search(r"\s", url):
        raise ValueError("a space in it")
    return parts


def shown(url: str) -> str:
    """Return the URL for a person: without password and query; of one that is malformed, the scheme only."""
    try:
        check_places(url)
        parts = urlsplit(url)
        if not (scheme_of(url) and parts.netloc):
            return "a malformed URL"
    except ValueError:
        return f"{scheme_of(url)}://…" if scheme_of(url) else "a malformed URL"
    account, at, place = parts.netloc.rpartition("@")
    user, colon, _ = account.partition(":")
    return urlunsplit((parts.scheme, f"{user}{':***' if colon else ''}{at}{place}", parts.path, "", ""))
