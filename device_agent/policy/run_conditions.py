"""Conditions for training: certain hours, while charging, on Wi-Fi, or what a command says.

A condition is asked now and then, never in the middle of a step. One that fails to answer says no: a
device that can't tell whether it charges must not drain its battery.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, time
from pathlib import Path
from typing import Any

from device_agent.session import events as e
from spliteasy.errors import UserError
from spliteasy.runtime import user_code

Condition = Callable[[], Awaitable[str | None]]
"""Why the device may not go on now, for a person; None: it may."""

ANSWER_S = 30.0
"""A command or function may take this long to answer."""
ASK_EVERY_S = 10.0
SYS = Path("/sys")

_HOURS = re.compile(r"hours:(\d{1,2})(?::([0-5]\d))?-(\d{1,2})(?::([0-5]\d))?")
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_KNOWN = "hours:FROM-TO, charging, wifi, module:function or a command"


def parse_conditions(
    texts: Sequence[str],
    *,
    root: Path | None = None,
    sys: Path = SYS,
    now: Callable[[], datetime] = datetime.now,
) -> Condition | None:
    """All that `--when` named: each must hold. None where it named nothing.

    `root` is where `module:function` is looked up, None for the current folder. Raises UserError for what
    is not known, and for what this machine can't tell.
    """
    conditions = [_parse(text.strip(), root, sys, now) for text in texts]
    if not conditions:
        return None

    async def all_hold() -> str | None:
        for condition in conditions:
            if (why := await condition()) is not None:
                return why
        return None

    return all_hold


def _parse(text: str, root: Path | None, sys: Path, now: Callable[[], datetime]) -> Condition:
    if text.startswith("hours:"):
        return _hours(text, now)
    if text == "charging":
        return _told(lambda: why_not_charging(sys / "class/power_supply"))
    if text == "wifi":
        return _told(lambda: why_no_wifi(sys / "class/net"))
    if _REFERENCE.fullmatch(text):
        return _Function(text, user_code.resolve(text, root=root, what="--when", error=UserError))
    return _command(text)


class Gate:
    """Asks a condition every `every_s`."""

    def __init__(self, condition: Condition, *, every_s: float = ASK_EVERY_S) -> None:
        self._condition = condition
        self._every_s = every_s
        self.why: str | None = None
        """The reason that the condition gave last."""

    def also(self, condition: Condition) -> Gate:
        """A gate that is open where both hold."""

        async def both() -> str | None:
            why = await self._condition()
            return await condition() if why is None else why

        return Gate(both, every_s=self._every_s)

    def said(self, why: str) -> None:
        """A reason that was seen between two looks: `watch` tells when it is gone."""
        self.why = why

    async def opened(self, tell: Callable[[str], None]) -> None:
        """Return when the condition holds; `tell` says why not, once a reason."""
        told = None
        while (why := await self._condition()) is not None:
            if why != told:
                tell(f"paused: {why}")
                told = why
            await asyncio.sleep(self._every_s)

    async def watch(self, emit: Callable[[e.Hold | e.Go], None]) -> None:
        """Tell of each change, until cancelled; at first the condition is taken to hold."""
        while True:
            await asyncio.sleep(self._every_s)
            before, self.why = self.why, await self._condition()
            if self.why != before:
                emit(e.Go() if self.why is None else e.Hold(self.why))


# Built in -----------------------------------------------------------------------------------------


def _hours(text: str, now: Callable[[], datetime]) -> Condition:
    found = _HOURS.fullmatch(text)
    parts = [int(part or 0) for part in found.groups()] if found else []
    if not parts or max(parts[0], parts[2]) > 24 or parts[:2] == parts[2:]:
        raise UserError(f"--when {text} is no time of day", hint="such as hours:22-6 or hours:8:30-17")
    begin, end = (time(hour % 24, minute) for hour, minute in (parts[:2], parts[2:]))

    async def within() -> str | None:
        moment = now().time()
        inside = begin <= moment < end if begin < end else moment >= begin or moment < end
        return None if inside else f"not between {begin:%H:%M} and {end:%H:%M}"

    return within


def _told(why_not: Callable[[], str | None]) -> Condition:
    """Asked once at once, so that a machine that can't tell says so before anything begins."""
    why_not()

    async def condition() -> str | None:
        try:
            return why_not()
        except UserError as error:
            return error.message

    return condition


def why_not_charging(supplies: Path) -> str | None:
    """None on external power, as the kernel tells in `supplies`. Raises UserError where it tells nothing."""
    known = False
    for supply in _folders(supplies):
        status, online = _read(supply / "status"), _read(supply / "online")
        if _read(supply / "type") in ("Battery", "UPS"):
            known = known or bool(status)
            if status in ("Charging", "Full", "Not charging"):  # the last: full enough, on the charger
                return None
        elif online:
            known = True
            if online != "0":
                return None
    if not known:
        raise UserError(
            f"--when charging: {supplies} tells nothing of this machine's power",
            hint="name a command that exits with 0 while it charges",
        )
    return "not charging"


def why_no_wifi(interfaces: Path) -> str | None:
    """None while a Wi-Fi interface is up, as the kernel tells. Raises UserError where there is none."""
    wireless = [
        each for each in _folders(interfaces) if (each / "wireless").exists() or (each / "phy80211").exists()
    ]
    if not wireless:
        raise UserError(
            f"--when wifi: {interfaces} has no Wi-Fi interface",
            hint="name a command that exits with 0 on the right network",
        )
    return None if any(_read(each / "operstate") == "up" for each in wireless) else "not on Wi-Fi"


def _folders(parent: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(parent.iterdir())


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


# The user's own -----------------------------------------------------------------------------------


def _command(text: str) -> Condition:
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    if not words or shutil.which(words[0]) is None:
        raise UserError(f"--when {text!r}: there is no such command", hint=f"give {_KNOWN}")

    async def condition() -> str | None:
        null = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(*words, stdin=null, stdout=null, stderr=null)
        except OSError as error:
            return f"{words[0]} can't be run: {error.strerror}"
        try:
            async with asyncio.timeout(ANSWER_S):
                code = await process.wait()
        except TimeoutError:
            return f"{words[0]} took longer than {ANSWER_S:.0f} s"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return None if code == 0 else f"{words[0]} says no (exit {code})"

    return condition


class _Function:
    """The user's function, in a thread of its own each time: it may block, and must hold nothing up."""

    def __init__(self, reference: str, function: Callable[[], Any]) -> None:
        self._reference = reference
        self._function = function
        self._asked: asyncio.Future[str | None] | None = None

    async def __call__(self) -> str | None:
        if self._asked is None:
            self._asked = self._ask()
        await asyncio.wait({self._asked}, timeout=ANSWER_S)
        if not self._asked.done():  # asked again only when it has answered
            return f"{self._reference} took longer than {ANSWER_S:.0f} s"
        answer, self._asked = self._asked.result(), None
        return answer

    def _ask(self) -> asyncio.Future[str | None]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[str | None] = loop.create_future()

        def ask() -> None:
            try:
                answer = None if self._function() else f"{self._reference} says no"
            except Exception as raised:
                answer = f"{self._reference} raised {user_code.told(raised)}"
            with suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(answered.set_result, answer)

        threading.Thread(target=ask, name="when", daemon=True).start()
        return answered
