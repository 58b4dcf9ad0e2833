"""Job files: what is accepted, and the one line that each mistake gets."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from spliteasy.errors import JobError
from spliteasy.job import JobSpec, load_job_file, parse_job

FULL = """
name = "my-job"
seed = 7
batch_size = 32
drop_last = true
epochs = 3
share_inputs = ["mask"]
share_body = true

[model]
factory = "my.model:build"
example = "my.model:example"
cuts = ["stem", "relu#2"]
inputs = ["image", "mask"]
targets = ["label"]

[loss]
function = "my.model:loss"

[optimizer]
name = "sgd"
lr = 0.1
momentum = 0.9
nesterov = true
weight_decay = 1e-4

[[optimizer.groups]]
pattern = "*.bias"
weight_decay = 0.0

[[optimizer.groups]]
pattern = "stem.*"
frozen = true

[schedule]
name = "cosine"
steps = 100
warmup_steps = 10
min_factor = 0.01

[clip]
max_norm = 1

[durability]
checkpoint_every = 5

[evaluation]
every_epochs = 0

[link]
chunk_bytes = 65536
"""


def small() -> dict[str, Any]:
    return {
        "name": "job",
        "batch_size": 8,
        "epochs": 1,
        "model": {"factory": "m:build", "example": "m:example", "cuts": ["stem", "pool"]},
        "loss": {"name": "cross_entropy"},
        "optimizer": {"name": "sgd", "lr": 0.1},
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    """`small()` with the key at the dotted path set."""
    data = copy.deepcopy(small())
    *sections, key = path.split(".")
    section = data
    for name in sections:
        section = section.setdefault(name, {})
    section[key] = value
    return data


def test_a_full_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text(FULL)
    spec = load_job_file(path)
    assert spec.model.cuts == ("stem", "relu#2")
    assert spec.optimizer.name == "sgd"
    assert spec.optimizer.groups[1].frozen
    assert spec.clip is not None
    assert spec.clip.max_norm == 1.0
    assert spec.durability.checkpoint_every == 5
    assert spec.durability.snapshot_every_steps == 50
    assert not spec.single


def test_the_canonical_json_is_stable_and_reads_back(tmp_path: Path) -> None:
    first, second = small(), dict(reversed(small().items()))
    assert parse_job(first).to_json() == parse_job(second).to_json()
    assert JobSpec.model_validate_json(parse_job(first).to_json()) == parse_job(first)
    assert parse_job(changed("seed", 1)).to_json() != parse_job(first).to_json()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("name", "My Job", "name: should be 1 to 63 of the characters a-z, 0-9 and -, not 'My Job'"),
        ("name", "a\n", "name: should be 1 to 63"),
        ("epoch", 3, "epoch: unknown key, did you mean epochs?"),
        ("zzz", 3, "zzz: unknown key; known here: accumulate, "),
        ("model.seed", 3, "model.seed: unknown key here; it belongs at the top of the file"),
        ("batch_size", 0, "batch_size: should be greater than or equal to 1, not 0"),
        ("batch_size", "8", "batch_size: should be a valid integer, not '8'"),
        ("drop_last", 1, "drop_last: should be a valid boolean, not 1"),
        ("micro_batches", 0, "micro_batches: should be greater than or equal to 1, not 0"),
        ("micro_batches", 17, "micro_batches: should be less than or equal to 16, not 17"),
        ("micro_batches", 16, "micro_batches: a batch of 8 can't be split into 16; use at most 8"),
        ("precision", "mixed", "precision: 'mixed' is not built yet; use 'fp32' or 'bf16'"),
        ("precision", "fp99", "precision: 'fp99' is not known; use 'fp32' or 'bf16'"),
        ("share_loss", "yes", "share_loss: should be a valid boolean, not 'yes'"),
        ("share_inputs", ["inptu"], "share_inputs: 'inptu' is no input; model.inputs has input"),
        ("share_labels", True, "share_labels: with two cuts labels stay on the device"),
        ("model.factory", "m.build", "model.factory: should be written module:function, not 'm.build'"),
        ("model.cuts", [], "model.cuts: "),
        ("model.cuts", ["a", "b", "c"], "model.cuts: "),
        ("model.cuts", ["a", "a"], "model.cuts: 'a' is named twice"),
        ("model.cuts", "automatic", "model.cuts: "),
        ("plan", {"uplink": "20"}, "plan.uplink: rate '20' has no unit"),
        ("plan", {"rtt": "50mbit"}, "plan.rtt: duration '50mbit' has no unit that is known (mbit)"),
        ("plan", {"device_memory": "much"}, "plan.device_memory: size 'much' is not a number and a unit"),
        ("plan", {"device_speed": 0}, "plan.device_speed: "),
        ("plan", {"max_input_correlation": 2}, "plan.max_input_correlation: "),
        ("model.cuts", ["a"], "with one cut the server computes the loss, so labels leave the device"),
        ("loss.name", "hinge", "loss.name: should be 'cross_entropy', "),
        ("loss.function", "m:loss", "loss: give either name or function"),
        ("optimizer.name", "rprop", "optimizer: name must be one of 'sgd', 'adam', 'adamw', 'rmsprop', "),
        ("optimizer.momentun", 0.9, "optimizer.momentun: unknown key, did you mean momentum?"),
        ("optimizer.lr", float("inf"), "optimizer.lr: should be a finite number, not inf"),
        ("optimizer.lr", -1, "optimizer.lr: should be greater than 0, not -1"),
        ("optimizer.nesterov", True, "optimizer: nesterov needs momentum > 0"),
        ("optimizer.betas", [0.9, 0.999], "optimizer.betas: unknown key"),
        ("optimizer.groups", [{"pattern": "a"}], "optimizer.groups[0]: a group needs lr"),
        ("optimizer.groups", [{"pattern": "a", "lr": -1}], "optimizer.groups[0].lr: should be greater"),
        ("optimizer.groups", [{"pattern": "a", "lr": 1, "frozen": True}], "a frozen group takes no lr"),
        ("schedule.name", "cosine", "schedule.steps: is missing"),
        ("schedule.warmup_steps", 1, "schedule: name is missing"),
        ("schedule", {"name": "cosine", "steps": 5, "warmup_steps": 5}, "steps (5) must be more than"),
        ("clip", {"max_norm": 1, "scope": "global"}, "clip.scope: 'global' is not built yet"),
        ("durability.on_non_finite", "ignore", "durability.on_non_finite: 'ignore' is not known"),
        ("link.activations", "auto", 'link: activations or gradients = "auto" and allow = '),
        ("link.allow", ["fp16"], 'link: activations or gradients = "auto" and allow = '),
        ("link", {"gradients": "auto", "allow": ["auto"]}, "link.allow[0]: 'auto' belongs in activations"),
        ("link", {"gradients": "auto", "allow": ["fp16", "fp16"]}, "link.allow: 'fp16' is named twice"),
        ("link.gradients", "topk:2", "link.gradients: "),
        ("fleet.mode", "splitfed-v2", "fleet.mode: 'splitfed-v2' is not known; use 'personal' or 'splitfed'"),
    ],
)
def test_a_mistake_gets_one_line_with_the_key(path: str, value: Any, told: str) -> None:
    with pytest.raises(JobError) as caught:
        parse_job(changed(path, value), source="job.toml")
    assert str(caught.value).startswith("job.toml: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_sections_are_named_together() -> None:
    with pytest.raises(JobError, match="model: is missing; loss: is missing; optimizer: is missing"):
        parse_job({"name": "job", "batch_size": 1, "epochs": 1})


def test_one_cut_is_accepted_with_shared_labels() -> None:
    data = changed("model.cuts", ["stem"])
    data["share_labels"] = True
    assert parse_job(data).single


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name = ", "not TOML: Invalid value"),
        (b"\xff", "not UTF-8"),
        (b" " * (1 << 20) + b"#", "larger than"),
    ],
)
def test_a_file_that_is_no_job_file(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    with pytest.raises(JobError, match=told):
        load_job_file(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no such job file"):
        load_job_file(tmp_path / "job.toml")
    with pytest.raises(JobError, match="can't be read"):
        load_job_file(tmp_path)
