"""A device trains only under its conditions: each kind of them, and a training that pauses between steps."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from device_agent.policy import run_conditions
from device_agent.policy.run_conditions import Gate, parse_conditions
from spliteasy.errors import UserError


async def ask(
    *texts: str, hour: str = "12:00", root: Path | None = None, sys_folder: Path = Path("/sys")
) -> str | None:
    condition = parse_conditions(
        texts, root=root, sys=sys_folder, now=lambda: datetime.strptime(hour, "%H:%M")
    )
    assert condition is not None
    return await condition()


@pytest.mark.parametrize(
    ("text", "open_at", "closed_at"),
    [
        ("hours:22-6", ("22:00", "23:59", "00:00", "05:59"), ("06:00", "12:00", "21:59")),
        ("hours:8:30-17", ("08:30", "16:59"), ("08:29", "17:00", "00:00")),
        ("hours:0-24", ("00:00", "23:59"), ()),
        ("hours:20-24", ("20:00", "23:59"), ("00:00", "19:59")),
    ],
)
async def test_hours(text: str, open_at: tuple[str, ...], closed_at: tuple[str, ...]) -> None:
    assert [await ask(text, hour=hour) for hour in open_at] == [None] * len(open_at)
    for hour in closed_at:
        assert (await ask(text, hour=hour) or "").startswith("not between ")


@pytest.mark.parametrize("text", ["hours:22", "hours:6-6", "hours:25-3", "hours:1:60-2", "hours:"])
def test_hours_that_can_not_be(text: str) -> None:
    with pytest.raises(UserError, match=r"no time of day \(such as hours:22-6"):
        parse_conditions([text])


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


async def test_charging_is_what_the_kernel_says(tmp_path: Path) -> None:
    supplies = tmp_path / "class/power_supply"
    write(supplies / "AC", type="Mains", online="0")
    write(supplies / "BAT0", type="Battery", status="Discharging")
    assert await ask("charging", sys_folder=tmp_path) == "not charging"
    write(supplies / "AC", online="1")
    assert await ask("charging", sys_folder=tmp_path) is None
    write(supplies / "AC", online="0")
    write(supplies / "BAT0", status="Charging")
    assert await ask("charging", sys_folder=tmp_path) is None


async def test_wifi_is_what_the_kernel_says(tmp_path: Path) -> None:
    interfaces = tmp_path / "class/net"
    write(interfaces / "eth0", operstate="up")
    with pytest.raises(UserError, match="has no Wi-Fi interface"):
        parse_conditions(["wifi"], sys=tmp_path)
    write(interfaces / "wlan0" / "wireless")
    write(interfaces / "wlan0", operstate="down")
    assert await ask("wifi", sys_folder=tmp_path) == "not on Wi-Fi"
    write(interfaces / "wlan0", operstate="up")
    assert await ask("wifi", sys_folder=tmp_path) is None


def test_a_machine_that_can_not_tell_says_so_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tells nothing of this machine's power.*name a command"):
        parse_conditions(["charging"], sys=tmp_path)


async def test_a_machine_that_stops_telling_says_no(tmp_path: Path) -> None:
    supply = tmp_path / "class/power_supply/AC"
    write(supply, type="Mains", online="1")
    condition = parse_conditions(["charging"], sys=tmp_path)
    assert condition is not None
    (supply / "online").unlink()
    assert "tells nothing" in (await condition() or "")


async def test_a_command(tmp_path: Path) -> None:
    flag = tmp_path / "go"
    assert await ask(f"test -e '{flag}'") == "test says no (exit 1)"
    flag.touch()
    assert await ask(f"test -e '{flag}'") is None
    with pytest.raises(UserError, match=r"no such command.*charging, wifi"):
        parse_conditions(["chargin"])


async def test_a_command_that_hangs_says_no_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_conditions, "ANSWER_S", 0.3)
    assert (await ask("sleep 600") or "").startswith("sleep took longer than")


@pytest.fixture
def own_functions(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "my_conditions.py").write_text(
        "import threading\nfree = threading.Event()\nasked = []\n"
        "def yes(): return True\n"
        "def no(): return 0\n"
        "def broken(): raise OSError('no sensor')\n"
        "def slow():\n    asked.append(1)\n    free.wait()\n    return True\n"
    )
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("my_conditions", None)


async def test_a_function(own_functions: Path) -> None:
    assert await ask("my_conditions:yes", root=own_functions) is None
    assert await ask("my_conditions:no", root=own_functions) == "my_conditions:no says no"
    assert "raised OSError: no sensor" in (await ask("my_conditions:broken", root=own_functions) or "")
    with pytest.raises(UserError, match="my_conditions has no yess"):
        parse_conditions(["my_conditions:yess"], root=own_functions)


async def test_a_function_that_hangs_is_not_asked_again_meanwhile(
    own_functions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    condition = parse_conditions(["my_conditions:slow"], root=own_functions)
    assert condition is not None
    monkeypatch.setattr(run_conditions, "ANSWER_S", 0.05)
    assert "took longer" in (await condition() or "")
    assert "took longer" in (await condition() or "")
    module = sys.modules["my_conditions"]
    assert len(module.asked) == 1
    module.free.set()
    monkeypatch.setattr(run_conditions, "ANSWER_S", 30.0)
    assert await condition() is None


async def test_all_must_hold() -> None:
    assert parse_conditions([]) is None
    assert await ask("true", "hours:11-13") is None
    assert await ask("true", "false") == "false says no (exit 1)"


async def test_a_gate_tells_of_changes_only() -> None:
    answers = iter(["night", "night", None, None, "day", "over"])
    told: list[str] = []
    ended = asyncio.Event()

    async def condition() -> str | None:
        answer = next(answers)
        if answer == "over":
            ended.set()
        return answer

    gate = Gate(condition, every_s=0.0)
    await gate.opened(told.append)
    events: list[object] = []
    watching = asyncio.create_task(gate.watch(events.append))
    await ended.wait()
    watching.cancel()
    assert told == ["paused: night"]
    assert [getattr(event, "why", None) for event in events] == ["day", "over"]
