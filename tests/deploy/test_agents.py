"""Agents come to devices over a real ssh, train, fall back, are upgraded and go: no step is lost."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.wheel import build_wheel
from device_agent.state_folder import StateFolder
from tests.attack.arena import open_arena
from tests.cli.test_stack import holders_of
from tests.deploy.sshd import Server, agent_dependencies, running_server
from tests.fixtures_rabbitmq import RabbitBroker, free_ports
from tests.simulation import toy

ROOT = Path(__file__).resolve().parents[2]
LONG = toy.Variant(epochs=20)
STEPS = 80
DEVICES = ("phone-1", "phone-2")
MODULE = '''
"""The toy's data; `may` holds the training up after some steps until there is a file."""

from pathlib import Path

import torch
from torch.utils.data import Dataset, TensorDataset

read = 0


class Counted(TensorDataset):
    def __getitem__(self, index):
        global read
        read += 1
        return super().__getitem__(index)


def device_data(device):
    generator = torch.Generator().manual_seed(int(device.rpartition("-")[2]))
    inputs = torch.randn(14, 6, generator=generator)
    targets = torch.randint(0, 2, (14,), generator=generator)
    return Counted(inputs, targets), TensorDataset(inputs[:5], targets[:5])


def may():
    return read < 60 or Path(GO).exists()
'''


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as server:
        yield server


class Operator:
    """The command line, and the folder that it is used in."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.go = server.home.parent / "go"
        (folder / "phone.py").write_text(MODULE.replace("GO", repr(str(self.go))))

    def inventory(self, devices: tuple[str, ...] = DEVICES, **more: Any) -> None:
        """A TOML file with these devices."""
        packages = f'PYTHONPATH = "{self.server.packages}"'
        environment = {
            "phone-1": f"{{{packages}}}",
            "phone-2": f'{{{packages}, PYTHONPROFILEIMPORTTIME = "1"}}',  # it tells what it imports
        }
        hosts = [
            f'[[hosts]]\nat = "{self.server.at(index)}"\ndevice = "{device}"\n'
            f'folder = "{self.server.home}/{device}"\nenvironment = {environment[device]}\n'
            for index, device in enumerate(devices)
        ]
        defaults = {
            "job": "toy",
            "data": "phone:device_data",
            "files": ["phone.py"],
            "arguments": ["--when", "phone:may", "--when-every", "0.05"],
            "python": self.server.python,
            "service": "supervisor",
            "settle_s": 0.2,
            "restart_s": 60.0,
            **({"run_as": "root"} if self.server.account == "root" else {}),
            **more,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in defaults.items()]
        (self.folder / "devices.toml").write_text("\n".join(["[defaults]", *lines, *hosts]))

    async def run(self, *words: object) -> tuple[int, str]:
        """Exit code, and all that it said."""
        process = await self.start(*words)
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def start(self, *words: object) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", "deploy.agents", *map(str, words), "--ssh", self.server.options]
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def all(self, action: str, *words: object) -> tuple[int, str]:
        return await self.run(action, "--inventory", "devices.toml", *words)

    def home(self, device: str) -> Path:
        return self.server.home / device

    def status(self, device: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.home(device) / "status.json").read_text())
        return status

    async def wait_for(self, device: str, state: str, text: str = "") -> None:
        """Wait until the supervisor's status says so."""
        while not ((status := self.status(device))["state"] == state and text in status.get("text", "")):
            assert status["state"] != "failed", (self.home(device) / "agent.log").read_text()
            await asyncio.sleep(0.05)


@pytest.fixture
def operator(server: Server, tmp_path: Path) -> Operator:
    return Operator(server, tmp_path)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The project's, one with another file, and one whose agent does not start."""
    first = build_wheel(tmp_path_factory.mktemp("wheel"))
    made = {"first": first}
    for name, member, text in (
        ("second", "spliteasy/second.py", b""),
        ("broken", "spliteasy_cli/commands/agent.py", b"raise RuntimeError('broken on purpose')\n"),
    ):
        made[name] = tmp_path_factory.mktemp(name) / first.name
        with zipfile.ZipFile(first) as old, zipfile.ZipFile(made[name], "w") as new:
            for info in old.infolist():
                if info.filename != member:
                    new.writestr(info, old.read(info))
            new.writestr(member, text)
    return made


@pytest.mark.rabbitmq
async def test_agents_arrive_train_are_upgraded_fall_back_and_go(
    operator: Operator,
    wheels: dict[str, Path],
    rabbitmq_broker: RabbitBroker,
    rabbitmq_vhost: str,
    tmp_path: Path,
) -> None:
    async with open_arena(rabbitmq_broker.node, rabbitmq_vhost, tmp_path, variant=LONG) as arena:
        passwords = []
        for device in DEVICES:
            arena.enroll(device)
            passwords.append(arena.password(device))
        operator.inventory()
        said = []
        try:
            code, text = await operator.all("deploy", "--wheel", wheels["first"])
            said.append(text)
            assert code == 0, text
            assert len(re.findall(r": 0\.2\.0\+[0-9a-f]{8} runs \(new, supervisor\)", text)) == 2
            assert_imports((operator.home("phone-2") / "agent.log").read_text())
            for device in DEVICES:
                await operator.wait_for(device, "ready", "paused")
                held = steps_held(operator.home(device) / "state")
                assert 0 < max(held) < STEPS

            operator.inventory(DEVICES[:1])
            code, text = await operator.all("deploy", "--wheel", wheels["broken"])
            said.append(text)
            assert code == 1, text
            assert "did not start" in text
            assert "broken on purpose" in text
            assert "runs again; mend it and deploy again" in text
            code, text = await operator.all("deploy", "--wheel", wheels["second"])
            said.append(text)
            assert (code, text.count("runs (was 0.2.0+")) == (0, 1), text

            operator.inventory()
            code, text = await operator.all("status")
            assert (code, text.count("ready (supervisor)")) == (0, 2), text
            operator.go.touch()  # one device has the new version now, the other still the old one
            for device, password, versions in zip(DEVICES, passwords, (2, 1), strict=True):
                await operator.wait_for(device, "done")
                home = operator.home(device)
                assert len(list((home / "venvs").iterdir())) == versions
                resumed = "resumed after step" in (home / "agent.log").read_text()
                assert resumed or versions == 1
                assert holders_of(password, home) == {f"{device}.enrol"}
                assert password not in "".join(said)
                assert_bits(home / "state", device)

            code, text = await operator.all("undeploy")
            assert (code, text.count("state and log stay in")) == (0, 2), text
            for device in DEVICES:
                left = {path.name for path in operator.home(device).iterdir()}
                assert left == {"state", "agent.log"}
            operator.inventory(DEVICES[:1])
            code, text = await operator.all("undeploy", "--delete-state")
            assert code == 0, text
            assert not operator.home("phone-1").exists()
        finally:
            operator.inventory()
            await operator.all("undeploy")
            operator.go.unlink(missing_ok=True)


def assert_imports(log: str) -> None:
    """A training agent imports no server package, and all that `spliteasy[agent]` names: so each is needed
    (`cryptography` where an operator's key is). That they suffice is shown by the packages that it finds.
    """
    modules = set(re.findall(r"^import time: .*\| +([\w.]+)$", log, re.MULTILINE))
    loaded = {name.split(".")[0] for name in modules}
    assert "device_agent" in loaded
    assert loaded & {"server_worker", "deploy", "examples", "redis", "prometheus_client", "sklearn"} == set()
    assert set(agent_dependencies()) - {"cryptography"} <= loaded


def steps_held(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal())


def assert_bits(folder: Path, device: str) -> None:
    """The state after the last step is that of a training without a wire."""
    with StateFolder(folder) as state:
        found, secret = state.load_checkpoint(STEPS), state.secret()
    expected = toy.undisturbed(device, LONG, secret)[0]
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


async def test_each_host_says_what_is_wrong_with_it(operator: Operator, wheels: dict[str, Path]) -> None:
    server = operator.server
    (closed,) = free_ports(1)
    account = {"role": "device", "account": "d", "password": "s3cret", "broker": "amqp://x/", "job": "toy"}
    run_as = ["run_as=root"] if server.account == "root" else []
    words: list[str] = []
    for device, at in (
        ("d-refused", f"{server.account}@127.0.0.1:{closed}"),
        ("d-unknown", f"{server.account}@localhost:{server.ports[0]}"),
        ("d-python", f"{server.at(0)} python=/no/python"),
        ("d-foreign", f"nobody@127.0.0.1:{server.ports[1]}"),
        ("d-new", f"{server.at(1)} python={server.python}"),
        ("d-account", f"{server.at(1)}"),
    ):
        file = operator.folder / f"{device}.enrol"
        if device != "d-new":
            name = "other" if device == "d-account" else device
            file.write_text(json.dumps({**account, "account": name}))
            file.chmod(0o600)
        words += [*at.split(), f"device={device}"]
    code, text = await operator.run("deploy", "data=m:f", *run_as, *words, "--wheel", wheels["first"])
    assert code == 1
    for device, says in (
        ("d-refused", "it refuses the connection (does an ssh server run there"),
        ("d-unknown", "the host's key is not known here (log in once by `ssh -p"),
        ("d-python", "there is no /no/python (sudo apt-get install python3"),
        ("d-foreign", "it does not let us in without a password (ssh-copy-id nobody@127.0.0.1"),
        ("d-new", "the device has no enrolment yet"),
        ("d-account", "is the enrolment of other, not of d-account"),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(f"error: {device} at")]
        assert says in line
    assert "s3cret" not in text


async def test_ctrl_c_ends_what_is_installed_on_the_hosts(
    operator: Operator, wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Ctrl-C comes at the moment when pip, on the device, waits for an index that never answers."""
    asked: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
    index = await asyncio.start_server(lambda *ends: asked.set_result(ends), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{index.sockets[0].getsockname()[1]}/simple"
    account = {"role": "device", "account": "phone-1", "password": "p", "broker": "amqp://x/", "job": "toy"}
    operator.folder.joinpath("phone-1.enrol").write_text(json.dumps(account))
    operator.folder.joinpath("phone-1.enrol").chmod(0o600)
    operator.inventory(DEVICES[:1], pip_options=["--index-url", url, "no-such-package"])
    home = operator.home("phone-1")
    async with index:
        process = await operator.start("deploy", "--inventory", "devices.toml", "--wheel", wheels["first"])
        reader, writer = await asked
        process.send_signal(signal.SIGINT)
        said, _ = await process.communicate()
        assert process.returncode == 130, said
        assert b"stopped" in said
        while await reader.read(1000):
            pass  # until pip is gone
        writer.close()
    with (home / ".lock").open() as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)  # until the program there is gone too
    assert list((home / "venvs").iterdir()) == []
    assert not (home / "release.json").exists()
    code, text = await operator.all("undeploy", "--delete-state")
    assert code == 0, text
