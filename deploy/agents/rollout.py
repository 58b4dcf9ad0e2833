"""One action on many hosts side by side, with a table of how far each is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deploy.agents.host.main import ENROLMENT, FILE, WHEEL
from deploy.agents.host.settings import MARK
from deploy.agents.inventory import DeviceHost
from deploy.agents.program import command, request
from deploy.agents.ssh import Ended, Ssh
from spliteasy.errors import LinkError, SplitEasyError, UserError

Action = Literal["deploy", "undeploy", "status"]
Said = Annotated[str, StringConstraints(max_length=4000)]
Tell = Callable[[DeviceHost, str], None]
NOT_FOUND = (126, 127)


class _Done(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    version: Said
    was: Said
    service: Said
    state: Said = ""
    kept: Said = ""


class _Answer(BaseModel):
    """One line of the device's side: a phase, the end, or an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    phase: Said | None = None
    done: _Done | None = None
    error: Said | None = None
    hint: Said = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result at one host."""

    host: DeviceHost
    text: str
    failed: bool


async def roll_out(
    hosts: Sequence[DeviceHost],
    action: Action,
    ssh: Ssh,
    *,
    wheel: Path | None = None,
    delete_state: bool = False,
    at_once: int,
    tell: Tell,
) -> list[Outcome]:
    """Do it at all hosts, `at_once` at a time. What fails at one stops no other."""
    places = asyncio.Semaphore(at_once)

    async def one(host: DeviceHost) -> Outcome:
        async with places:
            try:
                text = await _at(host, action, ssh, wheel, delete_state, tell)
            except (SplitEasyError, OSError) as error:
                tell(host, "FAILED")
                return Outcome(host, _plain(str(error)), True)
            tell(host, text)
            return Outcome(host, text, False)

    return list(await asyncio.gather(*map(one, hosts)))


async def _at(
    host: DeviceHost, action: Action, ssh: Ssh, wheel: Path | None, delete_state: bool, tell: Tell
) -> str:
    """Act at one host, and return the result in a word or two. Raises SplitEasyError, OSError."""
    files = {} if wheel is None else _files(host, wheel)
    answers: list[_Answer] = []

    def heard(line: str) -> None:
        if not line.startswith(MARK):
            return  # of a login script
        try:
            answer = _Answer.model_validate_json(line.removeprefix(MARK))
        except ValidationError:
            raise LinkError("it answers with what is no answer of ours") from None
        if answer.phase is not None:
            tell(host, _plain(answer.phase))
        else:
            answers.append(answer)

    tell(host, "connecting")
    login, port = host.login
    data = request(action, host.settings(delete_state=delete_state), files)
    ended = await ssh.talk(login, port, command(host.python), data, heard)
    if not answers:
        raise _no_answer(host, ended)
    answer = answers[-1]
    if answer.done is None:
        raise UserError(answer.error or "it failed", hint=answer.hint or None)
    return _plain(_in_words(action, host, answer.done))


def _files(host: DeviceHost, wheel: Path) -> dict[str, bytes]:
    """Return the files that are copied. Raises UserError where something is missing here."""
    if not host.data:
        raise UserError(
            "it is not said which data the agent trains on", hint="data=MODULE:FUNCTION or a folder there"
        )
    files = {f"{WHEEL}{wheel.name}": wheel.read_bytes()}
    files |= {f"{FILE}{path.name}": path.read_bytes() for path in host.files}
    account = host.account()
    if account is not None:
        files[ENROLMENT] = account
    return files


def _no_answer(host: DeviceHost, ended: Ended) -> SplitEasyError:
    if ended.code in NOT_FOUND:
        return UserError(
            f"there is no {host.python}",
            hint="sudo apt-get install python3 python3-venv, or name another: python=PATH",
        )
    last = " ".join(ended.stderr.split())[-300:]
    return SplitEasyError(f"its side ended with code {ended.code}: {last or 'it said nothing'}")


def _in_words(action: Action, host: DeviceHost, done: _Done) -> str:
    if action == "status":
        return f"{done.version} {done.state} ({done.service})"
    if action == "undeploy":
        kept = f"; state and log stay in {done.kept}" if done.kept else ""
        return f"{done.was or 'nothing'} removed{kept}"
    was = "again" if done.was == done.version else f"was {done.was}" if done.was else "new"
    return f"{done.version} runs ({was}, {done.service})"


def _plain(text: str) -> str:
    """One line without what a terminal would obey."""
    return "".join(each if each.isprintable() else " " for each in " ".join(text.split()))


class RolloutBoard:
    """The progress of all hosts: a live table on a terminal, else a line for each change."""

    def __init__(self, hosts: Sequence[DeviceHost], console: Console) -> None:
        self._phases: dict[str, str] = {host.device: "waiting" for host in hosts}
        self._hosts: Mapping[str, DeviceHost] = {host.device: host for host in hosts}
        self._console = console

    def tell(self, host: DeviceHost, phase: str) -> None:
        self._phases[host.device] = phase
        if not self._console.is_terminal:
            self._console.print(Text(f"{host.device} at {host.at}: {phase}"), soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._table, console=self._console, refresh_per_second=4):
            yield

    def _table(self) -> Table:
        table = Table("device", "host", "")
        for device, phase in self._phases.items():
            table.add_row(device, self._hosts[device].at, Text(phase))
        return table
