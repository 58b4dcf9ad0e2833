"""The device's side without ssh: the unit for systemd, our supervisor; and what an inventory may say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console

from deploy.agents.__main__ import main
from deploy.agents.host import supervisor as supervisor_module
from deploy.agents.host.home import Home, Release
from deploy.agents.host.main import _roll_back
from deploy.agents.host.service import StartFailed, Supervised, unit
from deploy.agents.host.settings import Settings
from deploy.agents.host.supervisor import Supervisor
from deploy.agents.inventory import DeviceHost, read_inventory
from deploy.agents.program import command, request
from deploy.agents.rollout import RolloutBoard
from spliteasy.errors import UserError

READY = (
    "import os, socket; a = os.environ['NOTIFY_SOCKET'];"
    "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.sendto(b'READY=1\\nSTATUS=here', '\\0' + a[1:]);"
)


def release(folder: Path, program: str = "pass") -> Release:
    return Release(
        version="0.2.0+test",
        venv=str(folder),
        cwd=str(folder),
        command=[sys.executable, "-c", program],
        memory="2G",
        memory_bytes=2 << 30,
        service="supervisor",
        run_as="root" if os.getuid() == 0 else "",
        start_s=60.0,
        settle_s=0.0,
        restart_s=0.01,
        python=sys.executable,
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("user", [None, "daemon"])
def test_systemd_takes_the_unit(user: str | None, tmp_path: Path) -> None:
    odd = replace(release(tmp_path), environment={"ODD": 'a "b" %h $HOME\\'}, command=["/bin/echo", "$x %n"])
    file = tmp_path / "spliteasy-agent-phone-1.service"
    file.write_text(unit("phone-1", tmp_path, odd, user=user))
    verify = ["systemd-analyze", "verify", "--man=no", *([] if user else ["--user"]), str(file)]
    ran = subprocess.run(verify, capture_output=True, text=True, check=False)
    complaints = [line for line in ran.stderr.splitlines() if file.name in line]
    assert complaints == []
    assert 'ExecStart="/bin/echo" "$$x %%n"' in file.read_text()
    assert ("User=daemon" in file.read_text()) == (user is not None)


def supervise(folder: Path, program: str, **more: object) -> tuple[int, dict[str, object]]:
    """The supervisor's code and its last status; it may run in a thread, without signals."""
    folder.joinpath("release.json").write_text(json.dumps({**asdict(release(folder, program)), **more}))
    codes: list[int] = []
    supervisor = Supervisor(folder)
    supervisor.catch_signals = lambda: None  # type: ignore[method-assign]
    thread = Thread(target=lambda: codes.append(supervisor.run()))
    thread.start()
    thread.join()
    return codes[0], json.loads((folder / "status.json").read_text())


def test_an_agent_that_ends_unasked_is_started_again(tmp_path: Path) -> None:
    program = "import sys; f = open('n', 'a'); f.write('x'); f.close(); sys.exit(len(open('n').read()) < 3)"
    code, status = supervise(tmp_path, program)
    assert (code, status["state"], (tmp_path / "n").read_text()) == (0, "done", "xxx")


def test_one_with_something_to_mend_is_not(tmp_path: Path) -> None:
    code, status = supervise(tmp_path, "import sys; sys.exit('no' and 2)")
    assert (code, status["state"], status["code"]) == (2, "failed", 2)


def test_one_that_takes_too_much_memory_is_started_again(tmp_path: Path) -> None:
    greedy = "import os, time; first = not os.path.exists('n'); open('n', 'w');"
    greedy += "x = bytearray(200 << 20) if first else 0; time.sleep(600 if first else 0)"
    _, status = supervise(tmp_path, greedy, memory_bytes=100 << 20)
    assert status["state"] == "done"
    assert "more than it may" in (tmp_path / "agent.log").read_text()


def test_a_long_log_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "LOG_BYTES", 1000)
    wait = "import os\nwhile not os.path.exists('agent.log.1'): os.sched_yield()"
    supervise(tmp_path, f"print('x' * 5000, flush=True)\n{wait}")
    assert (tmp_path / "agent.log").stat().st_size == 0
    assert (tmp_path / "agent.log.1").stat().st_size == 5001


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise SystemExit('wrong wheel')", "wrong wheel"),
        (READY + "raise SystemExit('wrong data')", "wrong data"),
        ("import time; time.sleep(600)", "it said nothing for 0.5 s"),
    ],
)
def test_a_start_that_failed_says_why(program: str, says: str, tmp_path: Path) -> None:
    home = home_in(tmp_path)
    service = Supervised(home)
    short = replace(release(tmp_path, program), start_s=0.5 if "600" in program else 60.0, settle_s=60.0)
    home.write_release(short)
    try:
        with pytest.raises(StartFailed, match=says):
            service.start(short)
    finally:
        service.stop()
    assert service.state() in ("stopped", "failed")


def test_a_version_that_does_not_come_back_either_is_tried_on(tmp_path: Path) -> None:
    """The broker may be away, say: the version must not be gone when the broker is there again."""
    home = home_in(tmp_path)
    settings = Settings(device="phone-1", folder=str(tmp_path))
    old = replace(release(tmp_path, "raise SystemExit('no broker')"), restart_s=600.0)
    try:
        said = _roll_back(settings, home, old, b"new", b"old")
        assert "is tried on" in said
        assert home.release() == old
        assert home.enrolment.read_bytes() == b"new"
        assert Supervised(home).state() == "restarting"
    finally:
        Supervised(home).stop()


def home_in(folder: Path) -> Home:
    """A folder with the program in it, as a deployment leaves it."""
    own = "root" if os.getuid() == 0 else ""
    home = Home(Settings(device="phone-1", folder=str(folder), run_as=own))
    data = request("status", Settings(device="phone-1"), {})
    size, _, rest = data.partition(b"\n")
    home.put(home.program, rest[: int(size)])
    return home


def test_the_program_needs_the_standard_library_only(tmp_path: Path) -> None:
    home = home_in(tmp_path)
    code = "import sys, deploy.agents.host.main; "
    code += "print({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'})"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(home.program)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.strip() == "{'deploy'}", ran.stderr
    assert "s3cret" not in command("python3")


# Inventories ----------------------------------------------------------------------------------------


def read(*words: str, file: Path | None = None) -> list[DeviceHost]:
    return read_inventory(words, file)


def test_words_lines_and_toml_say_the_same(tmp_path: Path) -> None:
    lines, toml = tmp_path / "devices", tmp_path / "devices.toml"
    lines.write_text(
        "data=m:f memory=512M  # for all\n"
        'pi@host-a.local:2222 arguments="--when charging"\n'
        "pi@[fe80::1] device=phone-2 files='a.py b.py'\n"
    )
    toml.write_text(
        '[defaults]\ndata = "m:f"\nmemory = "512M"\n'
        '[[hosts]]\nat = "pi@host-a.local:2222"\narguments = ["--when", "charging"]\n'
        '[[hosts]]\nat = "pi@[fe80::1]"\ndevice = "phone-2"\nfiles = ["a.py", "b.py"]\n'
    )
    hosts = read(file=lines)
    assert hosts == read(file=toml)
    assert [host.device for host in hosts] == ["host-a", "phone-2"]
    assert [host.login for host in hosts] == [("pi@host-a.local", 2222), ("pi@fe80::1", None)]
    assert hosts[0].enrolment == tmp_path / "host-a.enrol"
    assert hosts[1].files == (tmp_path / "a.py", tmp_path / "b.py")
    assert hosts[0].arguments == ("--when", "charging")
    words = read("data=m:f", "pi@host-a", "pi@host-b", "memory=1G")
    assert [(host.data, host.memory) for host in words] == [("m:f", "80%"), ("m:f", "1G")]
    settings = words[1].settings()
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no hosts are named"),
        (["pi@10.0.0.7"], "does not say which device it is"),
        (["pi@host-a", "pi@host-a:23"], "have the same device"),
        (["pi@host-a", "device=A"], "device"),
        (["pi@host-a", "colour=red"], "colour: extra inputs"),
        (["pi@host-a", "memory=lots"], "memory"),
        (["-oProxyCommand=evil"], "neither a host nor a setting"),
        (["pi@-oProxyCommand"], "at: string should match"),
        (["-v"], "at: string should match"),
        (["pi@host-a", "python=sh -c"], "python"),
        (["pi@host-a", "data=a\nb"], "data"),
    ],
)
def test_what_can_be_wrong_with_hosts(words: list[str], says: str) -> None:
    with pytest.raises(UserError) as raised:
        read(*words)
    assert says in str(raised.value).lower()


@pytest.mark.parametrize(
    ("text", "says"), [("[host]\n", "not known"), ("= 1", "can't be read"), ("hosts = 1", "not known")]
)
def test_what_can_be_wrong_with_a_file(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "devices.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read(file=file)
    with pytest.raises(UserError, match="can't be read"):
        read(file=tmp_path / "no-file")


def test_an_enrolment_that_does_not_fit_is_refused_here(tmp_path: Path) -> None:
    file = tmp_path / "phone-1.enrol"
    host = read(f"enrolment={file}", "pi@phone-1")[0]
    assert host.account() is None
    said = {"role": "device", "account": "phone-1", "password": "s3cret", "broker": "amqp://x/"}
    cases: list[tuple[object, int, Callable[[str], bool]]] = [
        (said, 0o600, lambda text: "names no job" in text),
        ({**said, "job": "toy"}, 0o644, lambda text: "can be read by others" in text),
        ({**said, "account": "phone-2"}, 0o600, lambda text: "not of phone-1" in text),
        ([], 0o600, lambda text: "is not what" in text),
    ]
    for content, mode, fits in cases:
        file.write_text(json.dumps(content))
        file.chmod(mode)
        with pytest.raises(UserError) as raised:
            host.account()
        assert fits(str(raised.value))
        assert "s3cret" not in str(raised.value)


# What a host may answer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (r"""printf 'Welcome!\nspliteasy: {"error": "\\u001b[31mbad\\nthing"}\n'""", "[31mbad thing"),
        ("echo 'spliteasy: [1]'", "what is no answer of ours"),
        ("""echo 'spliteasy: {"done": {"version": 1}}'""", "what is no answer of ours"),
        ("head -c 200000 /dev/zero", "a line that is too long"),
        ("echo hello; echo oops >&2; exit 3", "its side ended with code 3: oops"),
        ("exit 127", "there is no python3"),
        ("echo DeviceHost key verification failed. >&2; exit 255", "the host's key is not known here"),
    ],
)
def test_whatever_a_host_answers_is_one_plain_line(
    answer: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\n{answer}\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main(["status", "pi@phone-1"]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: phone-1 at pi@phone-1: ")
    assert says in line
    assert "\x1b" not in captured.out + captured.err


def test_on_a_terminal_there_is_a_table() -> None:
    said = StringIO()
    hosts = read("pi@phone-1", "pi@phone-2")
    board = RolloutBoard(hosts, Console(file=said, force_terminal=True, width=80))
    with board.shown():
        board.tell(hosts[1], "installing")
    assert "waiting" in said.getvalue()
    assert "installing" in said.getvalue()
