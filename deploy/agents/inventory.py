"""The inventory says which devices get an agent, and with which settings: words, lines of a file, or TOML.

    pi@host-a device=phone-1 data=photos:load     # a word without = begins a host; data= and the rest are its
    pi@host-b:2222 device=phone-2 data=/srv/photos arguments="--when charging"

Settings before the first host are for all of them. In TOML the same: [defaults], then [[hosts]] with
at = "pi@host-a".
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, ValidationError

from deploy.agents.host.settings import Settings
from spliteasy.errors import UserError

Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}$")]
Seconds = Annotated[float, Field(ge=0, le=3600)]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]*$")]
AT = re.compile(
    r"^(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:.%]+\])(?::(?P<port>\d+))?$"
)
LISTS = ("arguments", "extras", "pip_options", "files")
MAX_HOSTS = 1000


class DeviceHost(BaseModel):
    """One device. The names of most fields and what they mean are those of `Settings`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: Annotated[str, StringConstraints(pattern=AT.pattern)]
    device: Identifier
    enrolment: Path
    """The file on this machine that `spliteasy device enroll` wrote."""
    data: Line = ""
    """The data as `spliteasy agent` takes it; a folder is one of the device."""
    job: Line = ""
    files: tuple[Path, ...] = ()
    """Files of this machine that are copied into the agent's current folder: the module that `data` names."""
    arguments: tuple[Line, ...] = ()
    folder: Line = ""
    python: Annotated[str, StringConstraints(pattern=r"^[\w./-]+$")] = "python3"
    extras: tuple[Annotated[str, StringConstraints(pattern=r"^[a-z-]+$")], ...] = ("agent",)
    pip_options: tuple[Line, ...] = ()
    system_site_packages: bool = False
    environment: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*$")], Line] = {}
    memory: Annotated[str, StringConstraints(pattern=r"^([1-9]\d*[KMG]|[1-9]\d?%|100%)$")] = "80%"
    service: Literal["auto", "systemd", "supervisor"] = "auto"
    run_as: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]*$")] = ""
    start_s: Seconds = 120.0
    settle_s: Seconds = 5.0
    restart_s: Seconds = 10.0

    @property
    def login(self) -> tuple[str, int | None]:
        """Return `user@host` for ssh, and the port where one is named."""
        match = AT.match(self.at)
        assert match is not None
        host, port = match["host"].strip("[]"), match["port"]
        return (f"{match['user']}@{host}" if match["user"] else host), int(port) if port else None

    def settings(self, *, delete_state: bool = False) -> Settings:
        """Return the settings that the device's side is given."""
        ours = {"at", "enrolment", "files", "python"}
        return Settings(**self.model_dump(exclude=ours), delete_state=delete_state)

    def account(self) -> bytes | None:
        """The enrolment file's bytes; None where there is none. Raises UserError where it is another's."""
        try:
            mode, text = self.enrolment.stat().st_mode, self.enrolment.read_bytes()
        except FileNotFoundError:
            return None
        if mode & 0o077:
            raise UserError(
                f"the enrolment file {self.enrolment} can be read by others",
                hint=f"chmod 600 {self.enrolment}",
            )
        try:
            said = _Account.model_validate_json(text)
        except ValidationError:
            raise UserError(
                f"{self.enrolment} is not what `spliteasy device enroll` writes", hint="enroll again"
            ) from None
        if (said.role, said.account) != ("device", self.device):
            raise UserError(f"{self.enrolment} is the enrolment of {said.account}, not of {self.device}")
        if not said.job and not self.job:
            raise UserError(f"{self.enrolment} names no job", hint="job=NAME, or enroll with --job")
        return text


class _Account(BaseModel):
    """The part of an enrolment that is looked at here."""

    role: str
    account: str
    password: SecretStr
    job: str | None = None


def read_inventory(words: Iterable[str], file: Path | None) -> list[DeviceHost]:
    """The hosts of the words and of the file. Raises UserError."""
    where = Path()
    entries = _entries(words, "HOSTS")
    if file is not None:
        where = file.parent
        entries += _from_toml(file) if file.suffix == ".toml" else _entries(_words_of(file), str(file))
    if not entries:
        raise UserError("no hosts are named", hint='HOSTS="pi@host-a pi@host-b", or INVENTORY=FILE')
    if len(entries) > MAX_HOSTS:
        raise UserError(f"{len(entries)} hosts are too many at a time", hint=f"at most {MAX_HOSTS}")
    hosts = [_host(entry, where) for entry in entries]
    for key, what in (("device", "device"), ("folder", "folder at one host")):
        seen: dict[Any, str] = {}
        for host in hosts:
            name = host.device if key == "device" else (host.folder and (host.at, host.folder))
            if name and name in seen:
                raise UserError(f"{seen[name]} and {host.at} have the same {what}", hint="give each its own")
            seen[name] = host.at
    return hosts


def _entries(words: Iterable[str], source: str) -> list[dict[str, Any]]:
    """A word without = begins a host; those with = belong to the host before them, or to all."""
    common: dict[str, str] = {}
    entries: list[dict[str, str]] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            entries.append({**common, "at": word})
        elif not name.isidentifier():
            raise UserError(
                f"{source}: {word!r} is neither a host nor a setting", hint="user@host, or name=value"
            )
        else:
            (entries[-1] if entries else common)[name] = value
    return [_as_lists(entry) for entry in entries]


def _words_of(file: Path) -> list[str]:
    try:
        return shlex.split(file.read_text(), comments=True)
    except (OSError, ValueError) as error:
        raise UserError(f"the inventory {file} can't be read: {error}") from None


def _as_lists(entry: Mapping[str, str]) -> dict[str, Any]:
    """Turn words into what TOML would give: a list is one text with spaces, and `environment.NAME` is one
    variable."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        found[name] = shlex.split(value) if name in LISTS else value
    return found


def _from_toml(file: Path) -> list[dict[str, Any]]:
    try:
        tree = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"the inventory {file} can't be read: {error}") from None
    unknown = sorted(set(tree) - {"defaults", "hosts"})
    defaults, hosts = tree.get("defaults", {}), tree.get("hosts", [])
    if unknown or not isinstance(defaults, dict) or not isinstance(hosts, list):
        raise UserError(
            f"{file} has {unknown or 'something'} that is not known", hint="[defaults] and [[hosts]]"
        )
    return [{**defaults, **entry} for entry in hosts]


def _host(entry: dict[str, Any], where: Path) -> DeviceHost:
    """Paths in a file count from where the file is."""
    at = str(entry.get("at", ""))
    match = AT.match(at)
    if "device" not in entry and match is not None:
        name = match["host"].partition(".")[0].lower()
        if name.isdecimal() or not re.fullmatch(r"[a-z0-9-]{1,63}", name):
            raise UserError(f"{at} does not say which device it is", hint="device=NAME after it")
        entry = {**entry, "device": name}
    entry.setdefault("enrolment", f"{entry.get('device')}.enrol")
    entry["enrolment"] = where / str(entry["enrolment"])
    files = entry.get("files", ())
    entry["files"] = [where / str(path) for path in files] if isinstance(files, list) else files
    try:
        return DeviceHost.model_validate(entry)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"{at or 'a host'}: {field}: {fault['msg'].lower()}",
            hint=f"known are: {', '.join(DeviceHost.model_fields)}",
        ) from None
