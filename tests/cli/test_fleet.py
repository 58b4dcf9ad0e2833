"""One model from many devices: the training equals federated averaging in plain PyTorch, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest
import torch
from safetensors.torch import load

from spliteasy.fleet import program
from spliteasy_cli.commands.train import STORE_FILE
from tests.cli.conftest import Project, Ran

LAST_SAME = "max_abs_diff=0"
PLAIN = 'mode = "splitfed"\naggregate = "plain"\n'
OPEN_ENDS = "share_ends = true"


def fleet(text: str, *, ends: str = "average") -> dict[str, str]:
    """What a project needs for a job with rounds."""
    if ends == "own":
        return {"more": f'[fleet]\nmode = "splitfed"\nends = "own"\n{text}'}
    return {"top": OPEN_ENDS, "more": f"[fleet]\n{PLAIN}{text}"}


def shared(text: str) -> dict[str, str]:
    """What a project needs for a job whose devices train one body, and average their ends in the open."""
    return {"top": OPEN_ENDS, "more": f'[fleet]\nmode = "shared"\naggregate = "plain"\n{text}'}


RELAY_IN_THE_OPEN = {
    "top": OPEN_ENDS,
    "more": '[fleet]\nmode = "relay"\naggregate = "plain"\nround_steps = 3',
}
ADAMW = 'name = "adamw"\nlr = 0.01'
COSINE = '\n[schedule]\nname = "cosine"\nsteps = 20\nwarmup_steps = 3'


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(fleet("round_steps = 2"), id="sgd-batch-norm-dropout"),
        pytest.param(
            {**fleet('round_steps = 3\noptimizer = "average"'), "optimizer": ADAMW}, id="adamw-average"
        ),
        pytest.param({**fleet('round_steps = 3\noptimizer = "keep"'), "optimizer": ADAMW}, id="adamw-keep"),
        pytest.param(fleet('round_epochs = 1\noptimizer = "average"\nnorm = "local"'), id="fedbn"),
        pytest.param(fleet('round_steps = 2\nweights = "equal"\ndevices_per_round = 2'), id="drawn"),
        pytest.param(fleet('round_steps = 4\noptimizer = "keep"', ends="own"), id="own-ends"),
        pytest.param({"more": '[fleet]\nmode = "splitfed"\nround_steps = 3'}, id="sealed"),
        pytest.param(
            {"more": '[fleet]\nmode = "splitfed"\nround_epochs = 1\noptimizer = "keep"', "optimizer": ADAMW},
            id="sealed-adamw-keep",
        ),
        pytest.param({"more": '[fleet]\nmode = "relay"\nround_steps = 2' + COSINE}, id="relay-cosine"),
        pytest.param(
            {"more": '[fleet]\nmode = "relay"\nround_epochs = 1', "optimizer": ADAMW}, id="relay-adamw-epochs"
        ),
        pytest.param({**RELAY_IN_THE_OPEN, "cuts": '["stem"]'}, id="relay-in-the-open-single-split"),
        pytest.param({"more": '[fleet]\nmode = "shared"\nround_steps = 2' + COSINE}, id="shared-cosine"),
        pytest.param(
            {**shared('round_epochs = 1\nwindow = 2\noptimizer = "average"'), "optimizer": ADAMW},
            id="shared-adamw-windows-of-two",
        ),
        pytest.param(shared('round_steps = 3\nwindow = 1\nweights = "equal"'), id="shared-by-turns"),
        pytest.param(
            {"more": '[fleet]\nmode = "shared"\nends = "own"\nround_steps = 2\ndevices_per_round = 2'},
            id="shared-own-ends-drawn",
        ),
        pytest.param({**shared("round_steps = 2"), "cuts": '["stem"]'}, id="shared-single-split"),
        pytest.param({**fleet("round_steps = 2" + COSINE), "cuts": '["stem"]'}, id="single-split-cosine"),
    ],
)
def test_a_fleet_equals_the_plain_program(
    job: dict[str, str], spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    if job.get("cuts"):
        job = {**job, "top": f"{job['top']}\nshare_labels = true"}
    project = new_project(extra="nn.Dropout(0.3),", **job)
    ran = spliteasy("parity", "--fleet", project.job_file, "--steps", 10, "--devices", 3)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME
    assert "phone-3, step" in ran.out


@pytest.mark.rabbitmq
@pytest.mark.redis
def test_a_fleet_on_rabbitmq_and_redis(
    rabbitmq_url: str, redis_url: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(**fleet("round_epochs = 1"))
    there = ("--broker", rabbitmq_url, "--store", redis_url, "--workers", 2)
    ran = spliteasy("parity", "--fleet", project.job_file, "--steps", 10, "--devices", 3, *there)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME


@pytest.mark.parametrize("broken", ["order", "weights"])
def test_another_mean_is_seen(
    broken: str,
    spliteasy: Callable[..., Ran],
    new_project: Callable[..., Project],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A program that averages in float32, or weighs all devices alike, is not the one that was run."""
    project = new_project(**fleet("round_steps = 3"))
    (project.folder / f"{project.module}.py").write_text(
        (project.folder / f"{project.module}.py").read_text().replace("48, 6", "40 + 8 * int(device[-1]), 6")
    )

    def other(parts: dict[str, tuple[int, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
        counted = [(n if broken == "order" else 1, tensors) for n, tensors in parts.values()]
        total = sum(n for n, _ in counted)
        return {
            name: (sum(n * tensors[name] for n, tensors in counted) / total).to(first.dtype)
            for name, first in counted[0][1].items()
        }

    monkeypatch.setattr(program, "weighted_mean", other)
    ran = spliteasy("parity", "--fleet", project.job_file, "--steps", 10, "--devices", 3)
    assert ran.code == 1
    assert ran.out.splitlines()[-1] != LAST_SAME


def test_training_gives_every_device_the_same_model(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(**{**fleet("round_epochs = 1"), "top": f"{OPEN_ENDS}\nshare_loss = true"})
    ran = spliteasy("train", project.job_file, "--devices", 2, "--out", project.folder / "out")
    assert ran.code == 0, ran.out + ran.err
    files = []
    for device in ("phone-1", "phone-2"):
        files.append(project.folder / f"{device}.safetensors")
        state = project.folder / "out" / "devices" / device
        ran = spliteasy("merge", "--state", state, "--output", files[-1])
        assert ran.code == 0, ran.out + ran.err
    one, other = (load(file.read_bytes()) for file in files)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    store = ("--store", f"sqlite:///{project.folder / 'out' / STORE_FILE}")
    shown = spliteasy("fleet", "tiny", *store)
    assert shown.code == 0, shown.err
    assert "round 4 was the last so far" in shown.out
    assert "at least, median" in shown.out
    about = orjson.loads(spliteasy("fleet", "tiny", "--json", *store).out)
    accuracies = [each["accuracy"] for each in about["devices"]]
    assert about["accuracy"]["least"] == min(accuracies)
    assert about["accuracy"]["median"] == sum(accuracies) / 2
    rounds = about["rounds"]
    assert [each["round"] for each in rounds] == [0, 1, 2, 3, 4]
    assert rounds[4]["participants"] == {"phone-1": 40, "phone-2": 40}
    assert len({each["mean"] for each in rounds[1:]}) == 4
    assert "there is no job other" in spliteasy("fleet", "other", *store).error


def test_a_fleet_key_is_needed_where_ends_are_averaged(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    ran = spliteasy("fleet-key", "phones.key")
    assert ran.code == 0, ran.err
    assert "phones.key" in ran.out
    again = spliteasy("fleet-key", "phones.key")
    assert again.code != 0
    assert "exists already" in again.error


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ('mode = "shared"\nnorm = "local"', "the body is one"),
        ('mode = "shared"\norder = "arrival"', 'or "shared" with a window'),
        ('mode = "splitfed"\norder = "arrival"', "needs devices that wait for each other"),
        ('mode = "shared"\nends = "relay"', 'that needs mode = "relay"'),
        ('mode = "shared"\nwindow = 5\ndevices_per_round = 4', "can never be filled"),
        ('mode = "relay"\nends = "average"', "head and tail are handed over"),
        ('mode = "relay"\noptimizer = "keep"', "the optimizers are handed over"),
        ('mode = "relay"\ndevices_per_round = 4', "one device trains at a time"),
        ('mode = "relay"\nweights = "equal"', "nothing is weighed"),
        ('mode = "relay"\nquorum = 1', "a turn has one device"),
        ('mode = "splitfed"\noptimizer = "average"', "sealed ends are whole numbers"),
        ('mode = "splitfed"\ndevices_per_round = 2', "a sealed mean takes 3 devices"),
        ('mode = "splitfed"\nends = "relay"', 'that needs mode = "relay"'),
        ('mode = "personal"\nround_steps = 3', 'round_steps belongs to mode = "splitfed"'),
        ('mode = "splitfed"\nends = "own"\nround_steps = 3\nround_epochs = 1', "give either"),
        ('mode = "splitfed"\nends = "own"\naggregate = "plain"', "they never do"),
        ('mode = "splitfed"\nends = "own"\nwindow = 4', 'window belongs to mode = "shared"'),
        ('mode = "splitfed"\nends = "own"\nquorum = 5\ndevices_per_round = 4', "can never be reached"),
        ('mode = "splitfed"\naggregate = "plain"', "set share_ends = true"),
        ('mode = "splitfed"\nends = "own"\ndeadline = "soon"', "deadline"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_the_reason(
    settings: str, told: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(more=f"[fleet]\n{settings}")
    ran = spliteasy("train", project.job_file)
    assert ran.code != 0
    assert told in ran.error


def test_a_sealed_mean_of_two_is_refused(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(more='[fleet]\nmode = "splitfed"')
    ran = spliteasy("train", project.job_file, "--devices", 2)
    assert "a sealed mean takes 3 devices, and there are 2" in ran.error


def test_a_quorum_larger_than_the_fleet_is_refused(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(**fleet("quorum = 3", ends="own"))
    ran = spliteasy("train", project.job_file, "--devices", 2)
    assert "can never be reached by 2 devices" in ran.error


def test_a_fleet_that_is_not_paused_is_not_resumed(
    spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    project = new_project(**fleet("round_epochs = 1"))
    spliteasy("train", project.job_file, "--devices", 2, "--out", project.folder / "out")
    store = ("--store", f"sqlite:///{project.folder / 'out' / STORE_FILE}")
    assert "is not paused" in spliteasy("fleet", "tiny", "--resume", *store).error
