"""Each mode of a fleet has the bits of its plain program, whatever it trains and whatever is killed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from tests.cli.conftest import Project, Ran

LAST_SAME = "max_abs_diff=0"
MODES = {
    "splitfed": 'mode = "splitfed"\nround_steps = 2',
    "shared": 'mode = "shared"\nround_steps = 2',
    "by-arrival": 'mode = "shared"\nround_steps = 2\nwindow = 1\norder = "arrival"',
    "relay": 'mode = "relay"\nround_steps = 2',
}
LAYERS = {"batch-norm": "", "group-norm": "", "dropout": "nn.Dropout(0.3),"}
OPTIMIZERS = {
    "sgd": 'name = "sgd"\nlr = 0.05\nmomentum = 0.9',
    "adamw": 'name = "adamw"\nlr = 0.01\nweight_decay = 0.01',
}
PARTITIONS = ("iid", "dirichlet:0.3", "classes:2")
COVERING = [
    ("splitfed", "batch-norm", "sgd", "classes:2"),
    ("splitfed", "dropout", "adamw", "dirichlet:0.3"),
    ("shared", "group-norm", "sgd", "dirichlet:0.3"),
    ("shared", "batch-norm", "adamw", "classes:2"),
    ("by-arrival", "dropout", "adamw", "iid"),
    ("relay", "group-norm", "adamw", "iid"),
    ("relay", "dropout", "sgd", "classes:2"),
]
"""Each mode with each optimizer, and every kind of layer and of data in several modes."""


def parity(
    spliteasy: Callable[..., Ran],
    new_project: Callable[..., Project],
    case: tuple[str, str, str, str],
    *more: object,
) -> Ran:
    """Compare a fleet of four; the run that ended with the same bits."""
    mode, layers, optimizer, partition = case
    project = new_project(
        extra=LAYERS[layers], optimizer=OPTIMIZERS[optimizer], more=f"[fleet]\n{MODES[mode]}"
    )
    if layers == "group-norm":
        file = project.folder / f"{project.module}.py"
        file.write_text(file.read_text().replace("nn.BatchNorm1d(12)", "nn.GroupNorm(3, 12)"))
    options = ("--steps", 4, "--devices", 4, "--partition", partition, *more)
    ran = spliteasy("parity", "--fleet", project.job_file, *options)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == LAST_SAME
    return ran


@pytest.mark.parametrize("case", COVERING, ids="-".join)
def test_modes_layers_optimizers_and_data_that_cover_each_other(
    case: tuple[str, str, str, str], spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    parity(spliteasy, new_project, case)


@pytest.mark.long
@pytest.mark.parametrize("case", list(product(MODES, LAYERS, OPTIMIZERS, PARTITIONS)), ids="-".join)
def test_all_modes_layers_optimizers_and_data(
    case: tuple[str, str, str, str], spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    parity(spliteasy, new_project, case)


@pytest.mark.parametrize("mode", MODES)
def test_a_fleet_whose_parts_are_killed_equals_the_plain_program(
    mode: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    ran = parity(spliteasy, new_project, (mode, "dropout", "sgd", "iid"), "--faults", 1)
    assert "agent killed" in ran.out


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_a_fleet_whose_parts_are_killed_equals_it_under_more_seeds(
    mode: str, spliteasy: Callable[..., Ran], new_project: Callable[..., Project]
) -> None:
    for seed in range(2, 12):
        parity(spliteasy, new_project, (mode, "batch-norm", "adamw", "iid"), "--faults", seed)


@pytest.mark.rabbitmq
@pytest.mark.redis
@pytest.mark.parametrize(
    ("mode", "faults"),
    [
        ("shared", ()),
        ("relay", ()),
        pytest.param("shared", ("--faults", 3), marks=pytest.mark.long),
        pytest.param("relay", ("--faults", 3), marks=pytest.mark.long),
    ],
)
def test_a_fleet_on_rabbitmq_and_redis(
    mode: str,
    faults: tuple[object, ...],
    rabbitmq_url: str,
    redis_url: str,
    spliteasy: Callable[..., Ran],
    new_project: Callable[..., Project],
) -> None:
    there = ("--broker", rabbitmq_url, "--store", redis_url, "--workers", 2)
    ran = parity(spliteasy, new_project, (mode, "batch-norm", "adamw", "classes:2"), *there, *faults)
    assert ("agent killed" in ran.out) is bool(faults)


def test_faults_are_for_fleets(spliteasy: Callable[..., Ran], new_project: Callable[..., Project]) -> None:
    ran = spliteasy("parity", new_project().job_file, "--faults", 1)
    assert ran.code == 2
    assert "--faults is for fleets" in ran.error
