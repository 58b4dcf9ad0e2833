"""`spliteasy plan` and `profile`, and jobs whose cuts are "auto"."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.transport.in_process import MemoryBroker
from spliteasy.planning.profile import ComputeProfile, LinkProfile, Overhead, Profile
from spliteasy_cli.probes.link import FRAME_BYTES, measure_link
from spliteasy_cli.probes.pipeline import Probed, overhead_of
from tests.cli.conftest import Project, Ran

PNG = b"\x89PNG\r\n\x1a\n"
COMPUTE = ComputeProfile(convolution_flop_s=1e9, matmul_flop_s=1e9, memory_bytes_s=1e9, threads=1)
PHONE = Profile(
    compute=COMPUTE,
    link=LinkProfile(up_bytes_s=1000, down_bytes_s=2000, rtt_s=0.5),
    overhead=Overhead(round_trip_s=0.25, byte_s=0),
)


def test_plan_prints_a_table_and_draws(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    project = new_project()
    ran = spliteasy("plan", project.job_file, "--uplink", "1mbit", "-o", tmp_path / "p.png", "--all")
    assert ran.code == 0, ran.err
    assert "stem.0 | " in ran.out
    assert "yours" in ran.out
    assert 'cuts = ["' in ran.out
    assert "note: the example's inputs are all alike" in ran.out
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


def test_plan_as_json(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    project = new_project(more='[plan]\nrtt = "200ms"\nuplink = "1mbit"')
    options = ("--json", "--uplink", "8kbit", "--device-speed", "0.5", "--codec", "fp16")
    ran = spliteasy("plan", project.job_file, *options, "-o", tmp_path / "p.png")
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)
    assert plan["conditions"]["up_bytes_s"] == 1000, "the option wins over [plan]"
    assert plan["conditions"]["rtt_s"] == 0.2, "[plan] wins over the default"
    assert plan["conditions"]["device_speed"] == [0.5, 0.5, 0.5]
    assert plan["codecs"] == ["fp16", "fp16"]
    assert plan["own"]["cuts"] == ["stem", "middle"]
    assert plan["own"]["bytes_up"] == 8 * (12 + 12) * 2
    assert plan["best"] in plan["cuts"]
    assert plan["best"]["step_s"] == min(cut["step_s"] for cut in plan["cuts"])


def test_plan_reads_a_profile(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    project, file = new_project(), tmp_path / "phone.json"
    file.write_text(PHONE.model_dump_json())
    options = ("--json", "--profile", file, "--rtt", "100ms", "-o", tmp_path / "p.png")
    ran = spliteasy("plan", project.job_file, *options)
    assert ran.code == 0, ran.err
    conditions = json.loads(ran.out)["conditions"]
    assert (conditions["up_bytes_s"], conditions["down_bytes_s"]) == (1000, 2000)
    assert conditions["rtt_s"] == 0.1, "the option wins over the profile"
    assert conditions["round_trip_s"] == 0.25
    assert all(0 < speed < 1 for speed in conditions["device_speed"]), "1 GFLOP/s is slower than this machine"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--uplink", "20"), "--uplink '20' has no unit (write it as 20mbit"),
        (("--rtt", "50mbit"), "--rtt '50mbit' has no unit that is known (mbit)"),
        (("--device-memory", "lots"), "--device-memory 'lots' is not a number and a unit"),
        (("--codec", "zip"), "no codec is named 'zip'"),
        (("--device-memory", "100b"), "no cut keeps to --device-memory 0.1kb and a tail of 1 or more layers"),
        (("--device-memory", "100b"), "(relax it to --device-memory "),
        (("--min-head-layers", "9"), "(relax it to --min-head-layers 2)"),
        (("--max-input-correlation", "0.5"), "max_input_correlation needs a sample"),
        (("--profile", "nowhere.json"), "nowhere.json can't be read"),
        (("--sample", "no_such_module:f"), "plan.sample = 'no_such_module:f'"),
    ],
)
def test_mistakes(
    options: tuple[str, ...], told: str, new_project: Callable[..., Project], spliteasy: Callable[..., Ran]
) -> None:
    ran = spliteasy("plan", new_project().job_file, *options)
    assert ran.code == 2
    assert told in ran.error


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other"}', '{"compute": {"threads": 0}}'])
def test_a_profile_that_is_none(
    text: str, new_project: Callable[..., Project], spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    ran = spliteasy("plan", new_project().job_file, "--profile", file)
    assert ran.code == 2
    assert "bad.json is no device profile" in ran.error


def test_a_job_with_auto_cuts_trains(
    new_project: Callable[..., Project], spliteasy: Callable[..., Ran], tmp_path: Path
) -> None:
    project = new_project(cuts='"auto"', epochs=1, more='[plan]\nuplink = "1mbit"\nmin_head_layers = 1')
    ran = spliteasy("train", project.job_file, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "trained in" in ran.out


def test_profile_measures_and_writes(spliteasy: Callable[..., Ran], tmp_path: Path) -> None:
    ran = spliteasy("profile", "-o", tmp_path / "device.json")
    assert ran.code == 0, ran.err
    profile = Profile.model_validate_json((tmp_path / "device.json").read_bytes())
    assert profile.link is None
    assert profile.compute.threads == 1
    assert profile.compute.matmul_flop_s > 1e8
    assert profile.overhead is not None
    assert 0 < profile.overhead.round_trip_s < 1
    assert "GFLOP/s" in ran.out


def test_profile_without_its_broker(spliteasy: Callable[..., Ran], tmp_path: Path) -> None:
    ran = spliteasy("profile", "--broker", "amqp://127.0.0.1:1/", "-o", tmp_path / "device.json")
    assert ran.code == 2
    assert "the link can't be measured" in ran.error


async def test_a_link_is_measured_with_all_that_was_sent() -> None:
    transport = MemoryBroker().connect("phone")
    link = await measure_link(transport)
    assert link.up_bytes_s > FRAME_BYTES
    assert link.down_bytes_s > FRAME_BYTES
    assert link.rtt_s < 1


def test_overhead_is_told_apart_by_trips_and_bytes() -> None:
    overhead = overhead_of(Probed(0.021, 100_000), Probed(0.030, 1_000_000))
    assert overhead.byte_s == pytest.approx(1e-8)
    assert overhead.round_trip_s == pytest.approx(0.010)
    assert overhead_of(Probed(0.02, 10), Probed(0.01, 1000)).byte_s == 0
