"""The files of the page that a gateway serves beside its socket: read once, and sent as they are."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from aiohttp import web

TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".wasm": "application/wasm",
}
INDEX = "/index.html"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a browser asks each time whether the file is still the same
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    packed: bytes
    """The body under gzip."""
    content_type: str
    tag: str


class Pages:
    """Files by the path of their URL. Nothing outside them can be asked for."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """`files` by their paths, such as `/index.html`; their endings say what they are."""
        self._files = {path: _file(path, body) for path, body in files.items()}

    @classmethod
    def of(cls, folder: Path, more: Mapping[str, bytes] | None = None) -> Self:
        """The files directly in a folder that have a known ending, and `more` beside them."""
        found = {
            f"/{path.name}": path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in TYPES
        }
        return cls({**found, **(more or {})})

    def answer(self, request: web.BaseRequest) -> web.Response | None:
        """Answer a request for one of the files; None where there is none of that path."""
        file = self._files.get(INDEX if request.path == "/" else request.path)
        if file is None:
            return None
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        headers = {**HEADERS, "ETag": file.tag, "Content-Type": file.content_type, "Vary": "Accept-Encoding"}
        if file.tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=file.packed, headers={**headers, "Content-Encoding": "gzip"})
        return web.Response(body=file.body, headers=headers)


def _file(path: str, body: bytes) -> _File:
    tag = hashlib.sha256(body).hexdigest()[:32]
    return _File(body, gzip.compress(body, mtime=0), TYPES[Path(path).suffix], f'"{tag}"')
