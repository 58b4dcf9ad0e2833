"""The guard decides who may ask the dashboard for what: names it answers to, the operator's token, logins.

- A request must name the server as it is known (`Host`), so that a page of somebody else's can't reach it
  by a name that it lets point here (DNS rebinding). IP addresses can't be rebound and are taken.
- Who may operate says so by `Authorization: Bearer TOKEN`, or by a cookie that a login with the token gave
  (HttpOnly, SameSite=Strict). What acts must come as JSON from this very origin, which no foreign form can.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path

from spliteasy.errors import UserError

TOKEN_ENV = "SPLITEASY_DASHBOARD_TOKEN"  # noqa: S105
MIN_TOKEN = 16
SESSION_S = 12 * 3600.0
MAX_SESSIONS = 256
MAX_WRONG = 20
WRONG_S = 60.0
"""An address that sends this many wrong tokens within this many seconds is told to wait. A right token is
taken at any time: it is too long to be guessed, and a stranger must not lock out its owner."""
MAX_ADDRESSES = 1024
"""That are remembered for their wrong tokens, the latest."""

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?")


class Guard:
    """A guard with the operator's token. Without a token nobody may operate."""

    def __init__(
        self,
        *,
        token: str | None = None,
        hosts: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hosts`: names that it answers to, besides localhost and IP addresses."""
        self._token = None if token is None else _digest(token)
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._clock = clock
        self._sessions: dict[bytes, float] = {}
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        """The moments at which wrong tokens came, by address."""

    @property
    def can_operate(self) -> bool:
        """Return whether there is a token at all."""
        return self._token is not None

    def knows(self, host: str) -> bool:
        """Return whether a `Host` header names this server."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found[1].lower().removesuffix(".")
        try:
            ip_address(name.strip("[]"))
        except ValueError:
            return name in self._hosts
        return True

    def is_token(self, token: str, *, address: str) -> bool:
        """Compared in constant time; a wrong one counts against the address that it came from."""
        if self._token is None:
            return False
        right = hmac.compare_digest(_digest(token), self._token)
        if not right:
            self._wrong.setdefault(address, deque(maxlen=MAX_WRONG)).append(self._clock())
            self._wrong.move_to_end(address)
            if len(self._wrong) > MAX_ADDRESSES:
                self._wrong.popitem(last=False)
        return right

    def is_wary(self, address: str) -> bool:
        """Return whether too many wrong tokens have come from there lately."""
        wrong = self._wrong.get(address)
        return wrong is not None and len(wrong) == MAX_WRONG and self._clock() - wrong[0] < WRONG_S

    def log_in(self) -> str:
        """A new login's secret, for its cookie."""
        now = self._clock()
        self._sessions = {key: ends for key, ends in self._sessions.items() if ends > now}
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        secret = secrets.token_urlsafe(32)
        self._sessions[_digest(secret)] = now + SESSION_S
        return secret

    def log_out(self, secret: str) -> None:
        self._sessions.pop(_digest(secret), None)

    def is_login(self, secret: str) -> bool:
        """Looked up by its digest, so that the time taken tells nothing of it."""
        return self._sessions.get(_digest(secret), 0.0) > self._clock()


def read_token(file: Path | None) -> str | None:
    """Return the operator's token, of the file or the environment. Raises UserError for one of no use."""
    if file is not None:
        try:
            if file.stat().st_mode & 0o077:
                raise UserError(f"others can read the token in {file}", hint=f"chmod 600 {file}")
            token = file.read_text().strip()
        except OSError as error:
            reason = os.strerror(error.errno or 0).lower()
            raise UserError(f"{file} can't be read: {reason}") from None
        except UnicodeDecodeError:
            raise UserError(f"{file} is not text") from None
        where = str(file)
    else:
        token, where = os.environ.get(TOKEN_ENV, "").strip(), TOKEN_ENV
        if not token:
            return None
    if len(token) < MIN_TOKEN:
        raise UserError(
            f"the token in {where} has {len(token)} characters, and {MIN_TOKEN} are the least",
            hint=f"(umask 077; openssl rand -hex 24 > {file or 'dashboard.token'})",
        )
    return token


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
