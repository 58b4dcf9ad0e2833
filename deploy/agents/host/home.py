"""An agent's folder on the device.

DEVICE.enrol     its account, mode 0600
release.json     what is to run: put there whole, by one rename
venvs/HASH       an environment per wheel and way of installing it; the last two are kept
work/HASH        the current folder: the user's files
state/           checkpoints, which upgrades leave alone
agent.log        under our supervisor; systemd keeps its own
host.pyz         this program, for the supervisor
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.agents.host.settings import Settings


class HostError(Exception):
    """An error on the device, with what to do (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release that runs, or is to run."""

    version: str
    """The version of the wheel, with the first digits of its hash."""
    venv: str
    cwd: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    memory: str
    memory_bytes: int
    service: str
    run_as: str
    start_s: float
    settle_s: float
    restart_s: float
    python: str
    """The Python that runs the supervisor."""

    @classmethod
    def from_json(cls, text: str) -> Release:
        return cls(**json.loads(text))


class Home:
    """The folder, and what is in it."""

    def __init__(self, settings: Settings) -> None:
        root = Path("/var/lib/spliteasy") if os.getuid() == 0 else Path.home() / ".spliteasy"
        folder = Path(settings.folder).expanduser() if settings.folder else root / "agents" / settings.device
        self.folder = folder.absolute()
        self.enrolment = self.folder / f"{settings.device}.enrol"
        self.state = self.folder / "state"
        self.program = self.folder / "host.pyz"
        self._owner = _owner(settings.run_as)

    @contextmanager
    def locked(self, *, make: bool) -> Iterator[None]:
        """Hold the lock of a deployment, so that there is one at a time. Raises HostError."""
        if not make and not self.folder.is_dir():
            raise HostError(f"there is no agent in {self.folder}")
        # Ours where we are root: what decides what root runs must not be the agent's to change.
        self.folder.mkdir(mode=0o700 if self._owner is None else 0o711, parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise HostError("another deployment is at work there", "wait for its end") from None
            yield

    def own(self, path: Path) -> None:
        """Give it to the account that the agent runs as, where that is not ours."""
        if self._owner is not None:
            os.chown(path, *self._owner)

    def release(self) -> Release | None:
        """Return the release that runs now, or None before the first. Raises HostError."""
        try:
            return Release.from_json((self.folder / "release.json").read_text())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            raise HostError(
                f"{self.folder}/release.json is not what we write",
                "an older or newer version did: undeploy with that one, or delete the file",
            ) from None

    def write_release(self, release: Release) -> None:
        self.put(self.folder / "release.json", json.dumps(asdict(release), indent=2).encode())

    def put(self, file: Path, data: bytes, *, own: bool = False) -> None:
        """The file whole, with mode 0600 from its first moment; `own`: the agent reads it."""
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if own:
            self.own(temporary)
        temporary.replace(file)

    def put_work(self, files: Mapping[str, bytes]) -> Path:
        """The user's files in a folder of their own, named by what is in them."""
        digest = hashlib.sha256()
        for name, data in sorted(files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        folder = self.folder / "work" / digest.hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            self.put(folder / name, data, own=True)
        return folder

    def drop_unused(self, releases: Iterable[Release | None]) -> None:
        """Delete the environments and files that none of these needs."""
        kept = {path for each in releases if each for path in (each.venv, each.cwd)}
        for kind in ("venvs", "work"):
            for path in (self.folder / kind).glob("*"):
                if str(path) not in kept:
                    shutil.rmtree(path, ignore_errors=True)

    def remove(self, *, state: bool) -> None:
        """Remove all but state and log, or all."""
        if state:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.iterdir():
            if path == self.state or path.name.startswith("agent.log"):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _owner(account: str) -> tuple[int, int] | None:
    """User and group of `run_as`; None: our own. Raises HostError."""
    if os.getuid() != 0:
        if account and account != pwd.getpwuid(os.getuid()).pw_name:
            raise HostError(f"only root can run an agent as {account}", "log in as that account instead")
        return None
    if not account:
        raise HostError(
            "an agent should not run as root",
            "log in as another account, or name one that it runs as: run_as=ACCOUNT",
        )
    try:
        entry = pwd.getpwnam(account)
    except KeyError:
        raise HostError(f"there is no account {account}", f"useradd --system {account}") from None
    return entry.pw_uid, entry.pw_gid
