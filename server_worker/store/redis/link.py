"""The connection to Redis: commands and scripts in, our errors out. Only `sentinel.py` imports redis too."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import structlog
from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, SentinelConnectionPool
from redis.backoff import ConstantBackoff

from server_worker.store.redis.scripts import Script
from server_worker.store.redis.sentinel import HINT as SENTINEL_HINT
from server_worker.store.redis.sentinel import SCHEMES, check_declared, sentinel_pool
from spliteasy.errors import StoreDeferred, StoreError, StoreFull, StoreUnavailable, UserError
from spliteasy.runtime.descriptors import LACK_HINT, lack_of_descriptors
from spliteasy.runtime.urls import QUOTE_HINT, check_places, scheme_of, split_url

CONNECT_TIMEOUT_S: Final = 3.0
TIMEOUT_S: Final = 10.0
"""A command's bytes may take this long to be sent, and its answer as long to come: 8 MiB at 1 MB/s."""

CONNECTIONS: Final = 32
RETRY_AFTER_S: Final = 0.05

EVERYSEC_WINDOW_S: Final = 2.0
"""`appendfsync everysec` syncs once a second, and puts it off for another while a sync runs."""

_ROOM_CODES = {"OOM", "MISCONF"}
_TRANSIENT_CODES = {
    "ASK", "BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "NOAUTH", "NOPERM", "NOREPLICAS",
    "READONLY", "TRYAGAIN", "WRONGPASS",
}  # fmt: skip

CERTIFICATE_DATES: Final = {9, 10}
"""OpenSSL's codes for a certificate that is not valid yet, or not any more."""

_CODES: Final = {
    redis_errors.OutOfMemoryError: "OOM",
    redis_errors.ReadOnlyError: "READONLY",
    redis_errors.NoPermissionError: "NOPERM",
    redis_errors.ClusterDownError: "CLUSTERDOWN",  # and MASTERDOWN
    redis_errors.AskError: "ASK",  # and MOVED
    redis_errors.TryAgainError: "TRYAGAIN",
}

NO_EVICTION: Final = "noeviction"

log = structlog.get_logger(__name__)
Command = tuple[Any, ...]


class RedisLink:
    """A pool of connections. A call that is cancelled still runs to its end, so that its connection goes
    back to the pool clean; a lost connection is tried again once, hence every write may happen twice.

    Raises StoreUnavailable (the outcome is unknown), StoreFull (nothing was written) and StoreError, each
    within some 2 * (CONNECT_TIMEOUT_S + 2 * timeout).
    """

    def __init__(self, client: Redis, *, where: str, loss_window_s: float) -> None:
        self._places = asyncio.Semaphore(CONNECTIONS)
        """The connections that may be in use; a pool that sentinels lead does not wait by itself."""
        self.loss_window_s = loss_window_s
        self._client: Any = client  # half of redis-py is not typed
        self._where = where
        self._closed = False
        self._policy = NO_EVICTION
        self._running: set[asyncio.Task[Any]] = set()

    async def call(self, *command: Any) -> Any:
        return await self._run(self._client.execute_command(*command))

    async def script(
        self, script: Script, keys: Sequence[str], *args: Any, after: Sequence[Command] = ()
    ) -> Any:
        """Run it, `after` other commands in the same round trip; the first error of all is raised."""
        return await self._run(self._evaluate(script, (len(keys), *keys, *args), after))

    async def _evaluate(self, script: Script, args: Command, after: Sequence[Command]) -> Any:
        try:
            if after:
                return (await self._pipeline([*after, ("EVALSHA", script.sha, *args)]))[-1]
            return await self._client.execute_command("EVALSHA", script.sha, *args)
        except redis_errors.NoScriptError:
            return await self._client.execute_command("EVAL", script.source, *args)

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Several commands in one round trip; raises the first error."""
        results: list[Any] = await self._run(self._pipeline(commands))
        return results

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        # No MULTI: a full Redis refuses even to read within one.
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return results

    async def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        if self._closed:
            work.close()
            raise StoreUnavailable(f"the store on {self._where} is closed")
        task = asyncio.create_task(self._in_a_place(work))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        with _errors(self._where):
            return await asyncio.shield(task)

    async def _in_a_place(self, work: Coroutine[Any, Any, Any]) -> Any:
        async with self._places:
            return await work

    async def look_after(self) -> None:
        """Log loudly where somebody made the server evict keys meanwhile, and when that has ended."""
        policy = str((await self.call("INFO", "memory")).get("maxmemory_policy", NO_EVICTION))
        if policy == self._policy:
            return
        self._policy = policy
        if policy == NO_EVICTION:
            log.warning("the store evicts keys no more", where=self._where)
        else:
            log.error(
                f"{self._where} evicts keys when its memory is full (maxmemory-policy {policy}): it will "
                "lose training state without a word",
                hint="CONFIG SET maxmemory-policy noeviction, now; then look at `spliteasy session list`",
            )

    async def close(self) -> None:
        """Let commands in flight finish, then disconnect. Twice is harmless; other calls fail then."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running)
        with _errors(self._where):
            await _close(self._client)


async def connect(url: str) -> RedisLink:
    """Connect to `redis://` or `rediss://[user:password@]host[:port][/db]`, or to the primary that sentinels
    name (`server_worker.store.redis.sentinel`), and check that it will do.

    Query: `loss_window_s` (declares it, where the server doesn't tell or a replica may take over),
    `timeout_s`, and what redis-py takes (`ssl_ca_certs`, …).
    Raises UserError for a wrong URL, credentials or configuration, StoreUnavailable if nothing answers.
    """
    sentinels = scheme_of(url) in SCHEMES
    hint = SENTINEL_HINT if sentinels else "redis://[user:password@]host:port/0"
    try:
        if sentinels:
            check_places(url)
            parts = urlsplit(url)
        else:
            parts = _split(url)
    except ValueError as error:
        raise UserError(f"the store URL is wrong: it has {error}", hint=f"{hint}; {QUOTE_HINT}") from None
    query = dict(parse_qsl(parts.query))
    declared = _seconds(query, "loss_window_s")
    timeout_s = _seconds(query, "timeout_s") or TIMEOUT_S
    if sentinels:
        declared = check_declared(declared)
    settings = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(ConstantBackoff(RETRY_AFTER_S), 1),
        "protocol": 2,
    }
    pool: Any
    with _errors(parts.netloc.rpartition("@")[2]):  # the library reads files of its own here
        try:
            if sentinels:
                pool, where = sentinel_pool(url, query, **settings)
            else:
                pool, where = _pool(parts, query, timeout_s=timeout_s, **settings)
        except (ValueError, TypeError):
            what = "a path that is no name, or an option" if sentinels else "an option"
            raise UserError(
                f"the store URL is wrong: it has {what} behind the ? that is none of Redis's", hint=hint
            ) from None
    client = Redis.from_pool(pool)
    try:
        with _errors(where, tls=parts.scheme.startswith("rediss")):
            await _check(client, where)
            window = await _append_window(client, where) if declared is None else declared
    except BaseException:
        await _close(client)
        raise
    return RedisLink(client, where=where, loss_window_s=window)


async def _close(client: Any) -> None:
    """Close the connections, and those to sentinels too."""
    await client.aclose()
    if isinstance(client.connection_pool, SentinelConnectionPool):
        for sentinel in client.connection_pool.sentinel_manager.sentinels:
            await sentinel.aclose()


def _split(url: str) -> SplitResult:
    """Split the URL of one server. Raises ValueError as `split_url` does."""
    parts = split_url(url)
    if not parts.path.removeprefix("/").isdecimal() and parts.path not in ("", "/"):
        raise ValueError("a path that is not the number of a database")
    return parts


def _pool(
    parts: SplitResult, query: dict[str, str], *, timeout_s: float, **settings: Any
) -> tuple[BlockingConnectionPool, str]:
    """Return a pool of connections to one server, and what to call it in errors.

    Raises ValueError and TypeError for options that Redis does not know.
    """
    pool = BlockingConnectionPool.from_url(
        urlunsplit(parts._replace(query=urlencode(query))),
        max_connections=CONNECTIONS,
        timeout=timeout_s,
        **settings,
    )
    pool.connection_class(**pool.connection_kwargs)  # raises now for a name that it does not know
    return pool, f"Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"


def _seconds(query: dict[str, str], name: str) -> float | None:
    """Take a number out of the URL's query."""
    text = query.pop(name, None)
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = math.nan
    if value is not None and not value >= 0:
        raise UserError(f"the store URL has {name}={text}", hint="it must be a number of seconds")
    return value


async def _check(client: Any, where: str) -> None:
    """Check that the server is one that we can rely on. Raises UserError where it isn't."""
    try:
        info = await client.execute_command("INFO")
    except redis_errors.AuthenticationError as error:
        raise UserError(f"{where} refused the credentials: {error}", hint="check the store URL") from None
    except redis_errors.NoPermissionError as error:
        raise UserError(
            f"{where} denies this user: {error}", hint="allow it ~spliteasy:* and +@all"
        ) from None
    if int(info.get("loading", 0)):
        raise StoreDeferred(f"{where} is loading its data")
    if info.get("role") == "slave" and int(info.get("slave_read_only", 1)):
        raise StoreDeferred(f"{where} is a replica that takes no writes", hint="name the primary in the URL")
    if int(str(info["redis_version"]).partition(".")[0]) < 7:
        raise UserError(f"{where} is version {info['redis_version']}", hint="7.0 or newer is needed")
    if info.get("maxmemory_policy", NO_EVICTION) != NO_EVICTION:
        raise UserError(
            f"{where} evicts keys when memory is full (maxmemory-policy {info['maxmemory_policy']})",
            hint="it would silently lose training state: set maxmemory-policy noeviction",
        )


async def _append_window(client: Any, where: str) -> float:
    """Seconds of writes that the server may lose when its machine dies."""
    try:
        if (await client.execute_command("CONFIG GET", "appendonly"))["appendonly"] != "yes":
            return math.inf
        policy = (await client.execute_command("CONFIG GET", "appendfsync"))["appendfsync"]
    except (redis_errors.ResponseError, KeyError):
        log.warning("store durability unknown", where=where, hint="declare it in the URL: ?loss_window_s=2")
        return math.inf
    return {"always": 0.0, "everysec": EVERYSEC_WINDOW_S}.get(policy, math.inf)


@contextmanager
def _errors(where: str, *, tls: bool = False) -> Iterator[None]:
    """Turn what redis-py and the network raise into the project's errors. `tls`: with the handshake's."""
    try:
        yield
    except redis_errors.ResponseError as error:
        code = _code(error)
        if code in _ROOM_CODES:
            raise StoreFull(
                f"{where} has no room: {error}", hint="raise maxmemory, or forget sessions"
            ) from error
        if code in _TRANSIENT_CODES:
            raise StoreDeferred(f"{where} can't serve now: {error}") from error
        raise StoreError(f"{where} failed: {error}") from error
    except (redis_errors.BusyLoadingError, redis_errors.AuthenticationError) as error:
        raise StoreDeferred(f"{where} can't serve now: {error}") from error
    except (redis_errors.RedisError, OSError, EOFError) as error:
        if lack_of_descriptors(error):
            raise StoreUnavailable(
                f"this process can open no connection to {where}: it has used up its file descriptors",
                hint=LACK_HINT,
            ) from error
        if isinstance(error, MasterNotFoundError):
            raise StoreUnavailable(
                f"{where} can't be reached: no sentinel names a primary that serves now",
                hint="a failover takes some seconds; else check the sentinels' places, account and the name",
            ) from error
        if "max number of clients" in str(error):
            raise StoreDeferred(f"{where} takes no more clients", hint="raise its maxclients") from error
        if tls and (refused := _no_tls(error, where)) is not None:
            raise refused from error
        raise StoreUnavailable(
            f"{where} can't be reached: {error}", hint="is it running? `make up` starts a local one"
        ) from error


def _no_tls(error: BaseException, where: str) -> StoreDeferred | UserError | None:
    """Say why a first connection got no TLS: hung up on, or a certificate not trusted. None: neither."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionResetError | ConnectionAbortedError | ssl.SSLEOFError):
            return StoreDeferred(
                f"{where} broke the connection off, in its TLS handshake or after",
                hint="a server that is starting or ending does; else check that the port is its TLS port",
            )
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = f"the certificate of {where} is not trusted: {cause.verify_message}"
            if cause.verify_code in CERTIFICATE_DATES:
                return StoreDeferred(text, hint="check this machine's clock, and the certificate's dates")
            return UserError(text, hint="give the right authority with ?ssl_ca_certs=PATH")
        cause = cause.__cause__ or cause.__context__
    return None


def _code(error: redis_errors.ResponseError) -> str:
    """The word that Redis begins with, which the library takes away where it has a class for it."""
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return str(error).partition(" ")[0]
