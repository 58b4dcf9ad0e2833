"""A real ssh server on loopback, with host key and configuration of its own, for an unprivileged account."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fixtures_rabbitmq import free_ports

ROOT = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True, kw_only=True)
class Server:
    """One that runs. `home` is the account's, and others may look into it (not the agents' folders)."""

    account: str
    home: Path
    ports: tuple[int, int]
    """The ports of one server, which stand for two hosts."""
    options: str
    """Options for ssh."""
    python: str
    """An interpreter that the account can run."""
    packages: Path
    """A folder for PYTHONPATH there: what the agent's extra needs, and nothing else."""

    def at(self, number: int) -> str:
        return f"{self.account}@127.0.0.1:{self.ports[number]}"


@contextmanager
def running_server() -> Iterator[Server]:
    """Skips where no ssh server is installed, which `make test` does where it may."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no OpenSSH server here: apt-get install openssh-server openssh-client")
    with tempfile.TemporaryDirectory(prefix="spliteasy-sshd-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        home, packages = folder / "home", folder / "packages"
        home.mkdir()
        packages.mkdir()
        link_packages(packages)
        with _account(home, packages) as (account, python), _sshd(folder, home, account) as (ports, options):
            yield Server(
                account=account, home=home, ports=ports, options=options, python=python, packages=packages
            )


@contextmanager
def _account(home: Path, packages: Path) -> Iterator[tuple[str, str]]:
    """One of its own where we are root and it could run our packages, else ours; and its interpreter."""
    base = f"{sys.base_prefix}/bin/python3"
    ours = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() != 0 or shutil.which("useradd") is None:
        yield ours, base
        return
    account = f"spliteasy-{os.getpid()}"
    made = ["useradd", "--system", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh", account]
    subprocess.run(made, check=True, capture_output=True)
    try:
        entry = pwd.getpwnam(account)
        fitting = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        for python in (base, fitting):
            if _can_run(account, python, packages):
                os.chown(home, entry.pw_uid, entry.pw_gid)
                yield account, python
                return
        yield ours, base
    finally:
        subprocess.run(["userdel", account], check=True, capture_output=True)


def _can_run(account: str, python: str, packages: Path) -> bool:
    program = f"import ensurepip, venv; open({str(packages / 'torch/__init__.py')!r})"
    try:
        ran = subprocess.run(
            [python, "-c", program], user=account, cwd="/", env={}, capture_output=True, check=False
        )
    except OSError:
        return False
    return ran.returncode == 0


@contextmanager
def _sshd(folder: Path, home: Path, account: str) -> Iterator[tuple[tuple[int, int], str]]:
    """Give the server's ports, and the options that ssh needs."""
    entry = pwd.getpwnam(account)
    for name in ("host_key", "key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(words, check=True)
    os.chown(folder / "host_key", entry.pw_uid, entry.pw_gid)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    first, second = free_ports(2)
    host_key = (folder / "host_key.pub").read_text()
    known = "".join(f"[127.0.0.1]:{port} {host_key}" for port in (first, second))
    (folder / "known_hosts").write_text(known)
    lines = [
        f"Port {first}",
        f"Port {second}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host_key",
        "PidFile none",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        f"SetEnv HOME={home}",
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    assert SSHD is not None
    if entry.pw_uid == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it wants to be root, it wants this too
    with subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")],
        user=None if entry.pw_uid == os.getuid() else account,
        group=None if entry.pw_uid == os.getuid() else entry.pw_gid,
        extra_groups=None if os.getuid() else [],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stderr is not None
        try:
            for _ in (first, second):
                line = server.stderr.readline()
                assert "listening" in line, line + server.stderr.read()
            options = f"-F /dev/null -i {folder}/key -o IdentitiesOnly=yes"
            yield (first, second), f"{options} -o UserKnownHostsFile={folder}/known_hosts"
        finally:
            server.terminate()


def agent_dependencies() -> list[str]:
    """The packages that `spliteasy[agent]` names; the last is the one for operators' signatures."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["agent"]]
    return [Requirement(line).name for line in lines]


def link_packages(folder: Path) -> None:
    """Link what the project's dependencies bring, and nothing else of what is installed here."""
    wanted = agent_dependencies()
    seen: set[str] = set()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        for line in found.requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                wanted.append(need.name)
        tops = {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}
        for top in tops:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())
