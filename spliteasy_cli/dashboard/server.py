"""The dashboard's HTTP server: the page, its feed, and what an operator may do.

GET  /                     the page; /static/… its parts
GET  /api/state            all that is shown, as one JSON object
GET  /api/events           the same, then each change (Server-Sent Events)
POST /api/login, /logout   {"token": …} → a session cookie
POST /api/pause, /resume   {"session": "job.device"}
POST /api/revoke           {"device": "name"}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from spliteasy.errors import SplitEasyError, UserError
from spliteasy_cli.dashboard.feed import Feed
from spliteasy_cli.dashboard.guard import SESSION_S, Guard

log = structlog.get_logger(__name__)

STATIC = Path(__file__).parent / "static"
FILES = {
    "style.css": "text/css",
    "app.js": "text/javascript",
    "charts.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
MAX_READERS = 64
MAX_OF_ADDRESS = 32
"""Pages that are kept up to date: of all who have not logged in, and of each address of theirs. Operators
have others of their own, so that no stranger takes their place."""
MAX_BODY = 4096
ALIVE_S = 15.0
COOKIE = "spliteasy"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NAME = re.compile(r"[a-z0-9-]{1,63}")
_SESSION = re.compile(r"[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Operator(Protocol):
    """The actions of a person with the token. All raise SplitEasyError, and return False where there is no
    such thing."""

    async def pause(self, session: str, paused: bool) -> bool: ...

    async def revoke(self, device: str) -> bool: ...


@asynccontextmanager
async def serve(feed: Feed, guard: Guard, operator: Operator, *, host: str, port: int) -> AsyncIterator[int]:
    """Serve while entered; gives the port (a free one for 0). Raises UserError where it can't be had."""
    runner = web.AppRunner(_app(feed, guard, operator), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"can't listen on {host}:{port}: {reason}", hint="name another --port") from None
        bound: int = runner.addresses[0][1]
        yield bound
    finally:
        feed.close()
        await runner.cleanup()


def _app(feed: Feed, guard: Guard, operator: Operator) -> web.Application:
    app = web.Application(middlewares=[_checked(guard)], client_max_size=MAX_BODY)
    app.on_response_prepare.append(_add_headers)
    pages = _Pages(feed, guard, operator)
    app.add_routes(
        [
            web.get("/", pages.index),
            web.get("/static/{name}", pages.static),
            web.get("/api/state", pages.state),
            web.get("/api/events", pages.events, allow_head=False),
            web.post("/api/login", pages.log_in),
            web.post("/api/logout", pages.log_out),
            web.post("/api/pause", pages.pause),
            web.post("/api/resume", pages.resume),
            web.post("/api/revoke", pages.revoke),
        ]
    )
    return app


class _Pages:
    def __init__(self, feed: Feed, guard: Guard, operator: Operator) -> None:
        self._feed, self._guard, self._operator = feed, guard, operator
        self._strangers, self._operators = Counter[str](), Counter[str]()
        """The connections that follow the feed; those of strangers are counted by address."""

    # what all may see

    async def index(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=(STATIC / "index.html").read_text(), content_type="text/html")

    async def static(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in FILES:
            return _refusal(404, "there is no such file")
        return web.Response(text=(STATIC / name).read_text(), content_type=FILES[name])

    async def state(self, request: web.Request) -> web.StreamResponse:
        may = "yes" if self._may_operate(request) else "with-token" if self._guard.can_operate else "no"
        text = b'{"operate":' + orjson.dumps(may) + b',"parts":' + self._feed.whole() + b"}"
        return web.Response(body=text, content_type="application/json")

    async def events(self, request: web.Request) -> web.StreamResponse:
        operator, address = self._may_operate(request), _address(request)
        who = "" if operator else address
        readers = self._operators if operator else self._strangers
        if readers.total() >= MAX_READERS or (not operator and readers[who] >= MAX_OF_ADDRESS):
            return _refusal(503, "too many pages are open")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        readers[who] += 1
        try:
            await response.prepare(request)
            async with aclosing(self._feed.frames(ALIVE_S)) as frames:
                with suppress(ConnectionResetError):  # the page was closed
                    async for frame in frames:
                        await response.write(frame)
        finally:
            readers[who] -= 1
            readers += Counter()  # forgets who has none
        return response

    # what an operator may do

    async def log_in(self, request: web.Request) -> web.StreamResponse:
        token = (await _body(request)).get("token")
        if not self._guard.can_operate:
            return _refusal(403, "this dashboard is read-only: start it with --token-file")
        address = _address(request)
        if not isinstance(token, str) or not self._guard.is_token(token, address=address):
            if self._guard.is_wary(address):
                return _refusal(429, "too many wrong tokens: wait a minute")
            return _refusal(403, "that is not the token")
        response = web.json_response({})
        response.set_cookie(
            COOKIE,
            self._guard.log_in(),
            max_age=round(SESSION_S),
            path="/",
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get("X-Forwarded-Proto") == "https",
        )
        return response

    async def log_out(self, request: web.Request) -> web.StreamResponse:
        self._guard.log_out(request.cookies.get(COOKIE, ""))
        response = web.json_response({})
        response.del_cookie(COOKIE, path="/")
        return response

    async def pause(self, request: web.Request) -> web.StreamResponse:
        return await self._pause(request, paused=True)

    async def resume(self, request: web.Request) -> web.StreamResponse:
        return await self._pause(request, paused=False)

    async def _pause(self, request: web.Request, *, paused: bool) -> web.StreamResponse:
        return await self._act(
            request, "session", _SESSION, lambda session: self._operator.pause(session, paused)
        )

    async def revoke(self, request: web.Request) -> web.StreamResponse:
        return await self._act(request, "device", _NAME, self._operator.revoke)

    async def _act(
        self, request: web.Request, field: str, pattern: re.Pattern[str], do: Callable[[str], Awaitable[bool]]
    ) -> web.StreamResponse:
        if not self._may_operate(request):
            return _refusal(403, "log in with the token first")
        name = (await _body(request)).get(field)
        if not isinstance(name, str) or not pattern.fullmatch(name):
            return _refusal(400, f"{field} is not a {field}'s name")
        try:
            done = await do(name)
        except SplitEasyError as error:
            return _refusal(502, f"{error.message} ({error.hint})" if error.hint else error.message)
        log.info("operator", did=request.path.rpartition("/")[2], what=name, found=done)
        return web.json_response({}) if done else _refusal(404, f"there is no {field} {name}")

    def _may_operate(self, request: web.Request) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._guard.is_token(token.strip(), address=_address(request)):
            return True
        return self._guard.is_login(request.cookies.get(COOKIE, ""))


def _checked(guard: Guard) -> Middleware:
    """Refuse what is not meant for this server, or acts from elsewhere, before anything looks at it."""

    @web.middleware
    async def checked(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "")
        if not guard.knows(host):
            return _refusal(421, "not a name of this dashboard: start it with --allow-host NAME")
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("Origin")
            if origin is not None and origin.partition("://")[2].lower() != host.lower():
                return _refusal(403, "only the dashboard's own page may do that")
            if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
                return _refusal(403, "only the dashboard's own page may do that")
            if request.content_type != "application/json":
                return _refusal(415, "say it in JSON")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _refusal(error.status, error.reason.lower())

    return checked


def _address(request: web.Request) -> str:
    """Return the address that a request comes from, as far as the socket tells."""
    return request.remote or ""


async def _body(request: web.Request) -> dict[str, object]:
    """The JSON object that was sent; anything else reads as an empty one."""
    try:
        said = orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _refusal(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers["Server"] = "spliteasy"
