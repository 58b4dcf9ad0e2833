"""The program that is sent to a device, and the command that receives and starts it there."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path

import deploy
from deploy.agents.host.settings import Settings

PACKAGE = Path(deploy.__file__).parent
PARTS = ("__init__.py", "stack/__init__.py", "stack/daemons.py", "agents/__init__.py", "agents/host/*.py")
MAIN = """import sys
from deploy.agents.host.main import local_main
sys.exit(local_main(sys.argv[1:]))
"""
OLDEST = (3, 11)
BOOT = f"""
import json, os, sys, tempfile
if sys.version_info < {OLDEST}:
    had = "Python %d.%d is there, {OLDEST[0]}.{OLDEST[1]} is needed" % sys.version_info[:2]
    hint = "install a newer one and name it: python=PATH"
    print("spliteasy: " + json.dumps({{"error": had, "hint": hint}}))
    sys.exit(1)
stdin = sys.stdin.buffer
folder = tempfile.mkdtemp(prefix="spliteasy-")
path = os.path.join(folder, "host.pyz")
with open(path, "wb") as out:
    out.write(stdin.read(int(stdin.readline())))
sys.path.insert(0, path)
from deploy.agents.host.main import boot
boot(folder)
"""


def command(python: str) -> str:
    """Return the command for the device's shell. It has no secret in it: those come by standard input."""
    return shlex.join([python, "-c", BOOT])


def request(action: str, settings: Settings, files: Mapping[str, bytes]) -> bytes:
    """Return the bytes for the command's standard input: the program, then what to do."""
    program = _program()
    sizes = [[name, len(data)] for name, data in files.items()]
    head = json.dumps({"action": action, "settings": settings.to_json(), "files": sizes})
    return b"".join([f"{len(program)}\n".encode(), program, head.encode(), b"\n", *files.values()])


def _program() -> bytes:
    """Standard library only, as one zip file that Python runs."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("__main__.py", MAIN)
        for part in PARTS:
            for file in sorted(PACKAGE.glob(part)):
                out.write(file, f"deploy/{file.relative_to(PACKAGE).as_posix()}")
    return packed.getvalue()
