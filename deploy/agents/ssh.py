"""The system's ssh, as a way to run one program on a host and talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from spliteasy.errors import LinkError, UserError

OPTIONS = (
    "BatchMode=yes",  # never ask: nobody could answer for many hosts at once
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=4",
)
FAILED = 255
"""ssh's own exit code."""

LINE_BYTES = 1 << 16
STDERR_BYTES = 1 << 16
STOP_S = 5.0
_CHANGED = "the host's key is not the one that was known"
_UNKNOWN = "the host's key is not known here"
_SILENT = ("it does not answer", "is it on, and on the network?")
_MEANINGS = (
    ("identification has changed", _CHANGED, "find out why; if that is right: ssh-keygen -R {host}"),
    ("verification failed", _UNKNOWN, "log in once by `{ssh}` and compare its fingerprint"),
    ("permission denied", "it does not let us in without a password", "ssh-copy-id {login}"),
    ("could not resolve", "there is no host of that name", "is it spelled right, and known here?"),
    ("connection refused", "it refuses the connection", "does an ssh server run there, at that port?"),
    ("timed out", *_SILENT),
    ("no route to host", *_SILENT),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of the program on the device."""

    code: int
    stderr: str


@dataclass(frozen=True, slots=True)
class Ssh:
    """Runs programs on hosts. `options` are further words for ssh, such as `-i FILE`."""

    options: Sequence[str] = ()

    async def talk(
        self, login: str, port: int | None, command: str, data: bytes, heard: Callable[[str], None]
    ) -> Ended:
        """Run `command` there with `data` on its standard input, which stays open; `heard` gets each line.

        Raises UserError and LinkError where ssh itself fails. Cancelling closes the connection.
        """
        words = ["ssh", *(word for option in OPTIONS for word in ("-o", option)), *self.options]
        words += ["-p", str(port)] if port else []
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                "--",
                login,
                command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LINE_BYTES,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        except FileNotFoundError:
            raise UserError("there is no ssh here", hint="install an OpenSSH client") from None
        sending = asyncio.create_task(_send(process, data))
        errors = asyncio.create_task(_tail(process.stderr))
        try:
            await _lines(process.stdout, heard)
            assert process.stdin is not None
            process.stdin.close()
            ended = Ended(code=await process.wait(), stderr=await errors)
        finally:
            for task in (sending, errors):
                task.cancel()
            await _end(process)
            await asyncio.gather(sending, errors, return_exceptions=True)
        if ended.code == FAILED:
            raise _meaning(ended.stderr, login, port)
        return ended


async def _send(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with suppress(ConnectionError):
        process.stdin.write(data)
        await process.stdin.drain()


async def _lines(stream: asyncio.StreamReader | None, heard: Callable[[str], None]) -> None:
    assert stream is not None
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            raise LinkError("it answers with a line that is too long") from None
        if not line:
            return
        heard(line.decode(errors="replace").rstrip("\n"))


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """The end of what is said there."""
    assert stream is not None
    said = b""
    while data := await stream.read(LINE_BYTES):
        said = (said + data)[-STDERR_BYTES:]
    return said.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _meaning(stderr: str, login: str, port: int | None) -> UserError | LinkError:
    """Return the error that ssh's words mean, with what to do."""
    host = login.rpartition("@")[2]
    ssh = f"ssh -p {port} {login}" if port else f"ssh {login}"
    for words, message, hint in _MEANINGS:
        if words in stderr.lower():
            return UserError(message, hint=hint.format(login=login, host=host, ssh=ssh))
    last = " ".join(stderr.split())[-300:]
    return LinkError(f"ssh failed: {last or 'it said nothing'}", hint=f"try `{ssh}`")
