"""Patience decides how long a process tries to reach a broker or a store, and which answers end it.

At first a refusal that somebody has to mend is final, and one that can pass is tried for a while. Once there
was a connection, everything is waited out, since then the settings were right: only an account that was
deleted under a connection, and refused after that, is gone for good.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from broker.transport.backoff import full_jitter
from spliteasy.errors import (
    AccountGone,
    LinkDeferred,
    LinkError,
    LinkRefused,
    SplitEasyError,
    StoreDeferred,
    StoreUnavailable,
    UserError,
)

UNREACHABLE_S: Final = 10.0
"""A service tries this long at first to reach what does not answer; then its manager starts it again."""

DEFERRED_S: Final = 60.0
"""A process tries this long at first where the answer is: not now."""

SETTLED_S: Final = 1.0
"""A connection that lived for less leaves the next pause as long as it was: what is refused at once must not
be tried again at once."""

T = TypeVar("T")


class Patience:
    """Decides whether to go on trying. It has no timer: its user tells it what happens."""

    def __init__(
        self,
        *,
        unreachable_s: float = UNREACHABLE_S,
        deferred_s: float = DEFERRED_S,
        limit_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`limit_s`: how long one outage may last once there was a connection; None: without end."""
        self.connected_once = False
        self._unreachable_s = unreachable_s
        self._deferred_s = max(deferred_s, unreachable_s)
        self._limit_s = limit_s
        self._clock = clock
        self._since = clock()
        self._works = self._account_gone = False

    def connected(self) -> None:
        """It works."""
        self.connected_once = self._works = True
        self._account_gone = False

    def lost(self, why: SplitEasyError | None) -> None:
        """A connection has ended. Where it had worked, an outage begins."""
        self._account_gone = self._account_gone or isinstance(why, AccountGone)
        if self._works:
            self._works = False
            self._since = self._clock()

    def check(self, error: SplitEasyError) -> None:
        """Return where trying again makes sense; else raise the error."""
        if self.connected_once:
            final = self._account_gone and isinstance(error, LinkRefused)
            limit_s = self._limit_s
        else:
            final = not error.retriable
            limit_s = self._deferred_s if _is_deferred(error) else self._unreachable_s
        if final or (limit_s is not None and self._clock() - self._since >= limit_s):
            raise error


async def tried_for_a_while(
    attempt: Callable[[], Awaitable[T]],
    *,
    unreachable_s: float = 0.0,
    deferred_s: float = DEFERRED_S,
    tell: Callable[[str], object] = lambda _: None,
    rng: random.Random | None = None,
) -> T:
    """Return what the attempt returns, made again while its error can pass. This is for a first connection.

    `tell` gets one line about each new reason to wait. Raises the attempt's last error.
    """
    patience = Patience(unreachable_s=unreachable_s, deferred_s=deferred_s)
    told = ""
    for delay_s in full_jitter(max_s=2.0, rng=rng):
        try:
            return await attempt()
        except (LinkError, StoreUnavailable, UserError) as error:
            patience.check(error)
            if error.message != told:
                told = error.message
                tell(f"{told}; trying again")
        await asyncio.sleep(delay_s)
    raise AssertionError("the delays have no end")


def _is_deferred(error: SplitEasyError) -> bool:
    return isinstance(error, LinkDeferred | StoreDeferred)
