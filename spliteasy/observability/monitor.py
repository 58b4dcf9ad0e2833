"""A small HTTP server beside the work: `/metrics`, `/healthz` and `/readyz`.

It answers from the event loop that does the work, so an answer is the proof that the loop lives: a stuck
one leaves `/healthz` without an answer, and the caller's deadline tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from spliteasy.errors import UserError

log = structlog.get_logger(__name__)

HOST = "127.0.0.1"
"""The pages are served here unless another address is given: metrics name jobs, and are for this machine
only."""

REQUEST_S = 5.0
MAX_REQUEST_BYTES = 8192
TEXT = "text/plain; charset=utf-8"
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The contents of the pages. Both functions together have `REQUEST_S`."""

    metrics: Callable[[], Awaitable[bytes]]
    """The text of `/metrics`."""
    content_type: str
    why_not_ready: Callable[[], Awaitable[str | None]]
    """None when ready, else the reason in one line."""


@asynccontextmanager
async def monitored(pages: Pages, *, port: int, host: str = HOST) -> AsyncIterator[int]:
    """Serve while entered; gives the port (a free one for 0). Raises UserError where it can't be had."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                status, content_type, body = await _page(await reader.readuntil(b"\r\n\r\n"), pages)
                writer.write(_response(status, content_type, body))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a caller that says nothing useful in time gets nothing
        except Exception:
            log.exception("no answer to a request for metrics")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    try:
        server = await asyncio.start_server(answer, host, port, limit=MAX_REQUEST_BYTES)
    except OSError as error:
        raise UserError(
            f"can't listen on {host}:{port}: {error.strerror or error}", hint="name another --metrics-port"
        ) from None
    async with server:
        bound: int = server.sockets[0].getsockname()[1]
        log.info("metrics", url=f"http://{host}:{bound}/metrics")
        yield bound


async def _page(request: bytes, pages: Pages) -> tuple[int, str, bytes]:
    words = request.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3:
        return 400, TEXT, b"not a request of HTTP/1\n"
    if words[0] != b"GET":
        return 405, TEXT, b"only GET\n"
    match words[1].partition(b"?")[0]:
        case b"/healthz":
            return 200, TEXT, b"alive\n"
        case b"/readyz":
            reason = await pages.why_not_ready()
            return (200, TEXT, b"ready\n") if reason is None else (503, TEXT, f"{reason}\n".encode())
        case b"/metrics":
            return 200, pages.content_type, await pages.metrics()
    return 404, TEXT, b"/metrics, /healthz or /readyz\n"


def _response(status: int, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
