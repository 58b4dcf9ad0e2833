"""The program on the device: does what one request asks for, and says on standard output how it goes.

Standard input has one line of JSON, then the files that it lists. It stays open to the end: when the
operator's side goes away, installing stops; a change of what runs is always brought to its end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from deploy.agents.host.home import Home, HostError, Release
from deploy.agents.host.install import install
from deploy.agents.host.service import (
    SUPERVISOR,
    SYSTEMD,
    Service,
    StartFailed,
    has_systemd,
    service_of,
    supervise,
)
from deploy.agents.host.settings import MARK, Settings
from deploy.agents.host.supervisor import Supervisor

WHEEL, ENROLMENT, FILE = "wheel:", "enrolment", "file:"


def main(program: Path) -> int:
    """Serve the request on standard input; `program` is the zip file that we came in."""
    os.umask(0o022 if os.getuid() == 0 else 0o077)  # root installs for another account
    try:
        request = json.loads(sys.stdin.buffer.readline())
        files = {name: _read(sys.stdin.buffer, size) for name, size in request["files"]}
        settings = Settings.from_json(request["settings"])
        result = ACTIONS[request["action"]](settings, files, program)
    except HostError as error:
        _answer(error=error.message, hint=error.hint)
        return 1
    except OSError as error:
        _answer(error=str(error), hint="is there room, and may the account write there?")
        return 1
    _answer(done=result)
    return 0


def local_main(words: list[str]) -> int:
    """`host.pyz supervise|start FOLDER`: on the device itself."""
    action, folder = words[0], Path(words[1])
    if action == "supervise":
        return Supervisor(folder).run()
    release = Release.from_json((folder / "release.json").read_text())
    supervise(Home(Settings(device=folder.name, folder=str(folder), run_as=release.run_as)), release)
    return 0


def deploy(settings: Settings, files: Mapping[str, bytes], program: Path) -> dict[str, Any]:
    """Install, switch, and go back to what ran before where the new one does not start."""
    home = Home(settings)
    with home.locked(make=True):
        old = home.release()
        old_account = home.enrolment.read_bytes() if home.enrolment.exists() else None
        account = files.get(ENROLMENT, old_account)
        if account is None:
            raise HostError(
                "the device has no enrolment yet", "give the file that `spliteasy device enroll` wrote"
            )
        kind = _kind(settings)
        (name,) = (name for name in files if name.startswith(WHEEL))
        _say("installing")
        venv = install(settings, home, name.removeprefix(WHEEL), files[name])
        user_files = {n.removeprefix(FILE): data for n, data in files.items() if n.startswith(FILE)}
        release = _release(settings, home, kind, venv, home.put_work(user_files), name, files[name])
        home.put(home.program, program.read_bytes())
        home.state.mkdir(mode=0o700, exist_ok=True)
        home.own(home.state)
        if old is not None:
            _say("stopping the earlier one")
            _service(settings, home, old).stop()
        _say("starting")
        try:
            _start(settings, home, release, account)
        except StartFailed as failed:
            _service(settings, home, release).remove()
            back = _roll_back(settings, home, old, account, old_account or account)
            home.drop_unused([old])
            raise HostError(f"{release.version} did not start: {failed}", back) from None
        home.drop_unused([release, old])
        return {"version": release.version, "was": old.version if old else "", "service": kind}


def undeploy(settings: Settings, files: Mapping[str, bytes], program: Path) -> dict[str, Any]:
    """Stop it and remove all but its state and log."""
    home = Home(settings)
    with home.locked(make=False):
        old = home.release()
        _say("stopping")
        for kind in {SUPERVISOR, *([old.service] if old else [])}:
            service_of(kind, settings.device, home, settings.run_as).remove()
        home.remove(state=settings.delete_state)
        kept = "" if settings.delete_state else str(home.folder)
        return {"version": "", "was": old.version if old else "", "service": "", "kept": kept}


def status(settings: Settings, files: Mapping[str, bytes], program: Path) -> dict[str, Any]:
    """Return what runs."""
    home = Home(settings)
    release = home.release()
    if release is None:
        raise HostError(f"there is no agent in {home.folder}", "deploy it")
    state = _service(settings, home, release).state()
    return {"version": release.version, "was": "", "service": release.service, "state": state}


ACTIONS = {"deploy": deploy, "undeploy": undeploy, "status": status}


def _kind(settings: Settings) -> str:
    if settings.service == "auto":
        return SYSTEMD if has_systemd() else SUPERVISOR
    if settings.service == SYSTEMD and not has_systemd():
        raise HostError("systemd does not run there, or not for this account", "service=supervisor")
    return settings.service


def _release(
    settings: Settings, home: Home, kind: str, venv: Path, work: Path, name: str, wheel: bytes
) -> Release:
    job = ["--job", settings.job] if settings.job else []
    command = [str(venv / "bin/python"), "-m", "spliteasy_cli", "agent", *settings.arguments]
    paths = ["--enrolment", str(home.enrolment), "--state", str(home.state)]
    version = f"{name.split('-')[1]}+{hashlib.sha256(wheel).hexdigest()[:8]}"
    return Release(
        version=version,
        venv=str(venv),
        cwd=str(work),
        command=[*command, *paths, "--data", settings.data, *job],
        environment={"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **settings.environment},
        memory=settings.memory,
        memory_bytes=_bytes_of(settings.memory),
        service=kind,
        run_as=settings.run_as,
        start_s=settings.start_s,
        settle_s=settings.settle_s,
        restart_s=settings.restart_s,
        python=sys.executable,
    )


def _start(settings: Settings, home: Home, release: Release, account: bytes) -> None:
    """Raises StartFailed."""
    home.put(home.enrolment, account, own=True)
    home.write_release(release)
    _service(settings, home, release).start(release)


def _roll_back(
    settings: Settings, home: Home, old: Release | None, account: bytes, old_account: bytes
) -> str:
    """Start the earlier version, with the new account or else its own; what came of it, for a person.

    The new one first: where the password was changed, the broker knows no other any more. A version that does
    not come up either stays, and its service tries on: it may be the broker that is away.
    """
    if old is None:
        (home.folder / "release.json").unlink()
        return "nothing runs; mend it and deploy again"
    service = _service(settings, home, old)
    for each in dict.fromkeys((account, old_account)):
        _say(f"going back to {old.version}")
        service.stop()
        try:
            _start(settings, home, old, each)
        except StartFailed:
            continue
        return f"{old.version} runs again; mend it and deploy again"
    home.put(home.enrolment, account, own=True)
    return f"{old.version} did not start again either, and is tried on; is the broker there?"


def _service(settings: Settings, home: Home, release: Release) -> Service:
    return service_of(release.service, settings.device, home, release.run_as)


def _bytes_of(memory: str) -> int:
    """Return the bytes of `512M` or `80%`, which the operator's side has checked."""
    if memory.endswith("%"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(total * float(memory[:-1]) / 100)
    return int(memory[:-1]) << {"K": 10, "M": 20, "G": 30}[memory[-1]]


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise HostError("the connection ended in the middle of a file")
    return data


def _say(phase: str) -> None:
    _answer(phase=phase)


def _answer(**words: Any) -> None:
    """Answer the operator's side. Nothing changes here if it has gone."""
    try:
        print(f"{MARK}{json.dumps(words)}", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def boot(folder: str) -> None:
    """Start from the bootstrap of `program.py`."""
    try:
        code = main(Path(folder) / "host.pyz")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(code)
