"""A Redis that sentinels watch: the client asks them for the primary, and asks again after a failover.

The URL is `redis+sentinel://[user:password@]host:port,host:port/NAME[/db]?loss_window_s=SECONDS`, with the
sentinels' places, and the name under which they know the primary; `rediss+sentinel://` speaks TLS with all of
them. `sentinel_username` and `sentinel_password` in the query are the account at the sentinels.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import SplitResult, urlencode, urlsplit, urlunsplit

from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from spliteasy.errors import UserError
from spliteasy.runtime.urls import check_places, places_of

SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
PORT: Final = 26379
HINT: Final = "redis+sentinel://[user:password@]host:26379,host:26379/NAME/0?loss_window_s=10"


def sentinel_pool(url: str, query: dict[str, str], **settings: Any) -> tuple[SentinelConnectionPool, str]:
    """Return a pool of connections to the primary, and what to call it in errors. Connects to nothing yet.

    `query`: the URL's query without the options of ours. `settings` are of each connection, to sentinels too.
    Raises ValueError and TypeError for what is not such a URL, or has options that Redis does not know.
    """
    check_places(url)
    parts = urlsplit(url)
    name, _, database = parts.path.removeprefix("/").partition("/")
    if not name or (database and not database.isdecimal()):
        raise ValueError("a path that is not the primary's name, and perhaps a database's number")
    account = {
        key: query.pop(f"sentinel_{key}") for key in ("username", "password") if f"sentinel_{key}" in query
    }
    tls = parts.scheme == "rediss+sentinel"
    of_primary = _options(parts, query, database, tls=tls)
    sentinels = []
    for place in map(urlsplit, places_of(url)):
        if not place.hostname:
            raise ValueError("a place without a host")
        sentinels.append((place.hostname, place.port or PORT))
    own = {key: value for key, value in of_primary.items() if key.startswith("ssl")}
    manager = Sentinel(sentinels, sentinel_kwargs={**own, **account, **settings})  # type: ignore[no-untyped-call]
    pool = SentinelConnectionPool(name, manager, **of_primary, **settings)  # type: ignore[no-untyped-call]
    pool.connection_class(**pool.connection_kwargs)  # raises now for an option that it does not know
    shown = ", ".join(f"{host}:{port}" for host, port in sentinels)
    return pool, f"Redis {name!r} of the sentinels at {shown}"


def _options(parts: SplitResult, query: dict[str, str], database: str, *, tls: bool) -> dict[str, Any]:
    """Return the options of a connection to the primary, as the library reads them from a URL."""
    account = parts.netloc.rpartition("@")[0]
    netloc = f"{account}@localhost" if account else "localhost"
    plain = (("rediss" if tls else "redis"), netloc, f"/{database or 0}", urlencode(query), "")
    options: dict[str, Any] = {**parse_url(urlunsplit(plain))}
    for key in ("host", "port", "connection_class"):
        options.pop(key, None)
    return {**options, "ssl": True} if tls else options


def check_declared(loss_window_s: float | None) -> float:
    """Return the declared loss window. Raises UserError where there is none: a failover loses what the new
    primary had not got yet, and only the operator knows how much that may be."""
    if loss_window_s is None:
        raise UserError(
            "the store URL names sentinels, and not how many seconds of writes a failover may lose",
            hint="declare it: ?loss_window_s=10, and bound it on the server (min-replicas-to-write 1, "
            "min-replicas-max-lag 10)",
        )
    return loss_window_s
