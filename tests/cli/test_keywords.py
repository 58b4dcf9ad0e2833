"""A model of a library trains as it comes: called by keywords, with outputs of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from spliteasy import split
from spliteasy.errors import JobError
from spliteasy.job import load_job_file
from spliteasy.job.source import build_model
from tests.cli.conftest import ROOT, Ran

pytestmark = pytest.mark.filterwarnings("ignore")
"""What the library warns of is its own."""

MODEL = """
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

IGNORED = -100


def build():
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=19, n_embd=8, n_layer=2, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=1,
        pad_token_id=0,
    ))


def texts(count, seed):
    ids = torch.randint(1, 19, (count, 6), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(6) < 3 + torch.arange(count)[:, None] % 4).long()
    labels = torch.where(mask.bool(), ids, IGNORED)
    return [{"attention_mask": m, "input_ids": i, "labels": l} for i, m, l in zip(ids, mask, labels)]


def example():
    batch = texts(4, 0)
    return {name: torch.stack([text[name] for text in batch]) for name in batch[0]}


def device_data(device):
    return texts(12, len(device)), texts(4, 9)


def next_token(logits, labels):
    before, after = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(before, after, ignore_index=IGNORED)
"""

JOB = """
name = "texts"
seed = 3
batch_size = 4
epochs = 2
micro_batches = 2

[model]
factory = "texts_by_keyword:build"
example = "texts_by_keyword:example"
cuts = ["transformer.h.0", "transformer.h.1"]
inputs = ["input_ids", "attention_mask"]
targets = ["labels"]

[loss]
function = "texts_by_keyword:next_token"

[optimizer]
name = "adam"
lr = 0.01
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "texts_by_keyword.py").write_text(MODEL)
    file = tmp_path / "job.toml"
    file.write_text(JOB)
    return file


def test_a_language_model_trains_as_it_is(job_file: Path, spliteasy: Callable[..., Ran]) -> None:
    ran = spliteasy("parity", job_file, "--steps", 4, "--data", "texts_by_keyword:device_data")
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == "max_abs_diff=0"

    job_file.write_text(JOB.replace('"input_ids", "attention_mask"', '"input_ids", "mask"'))
    with pytest.raises(
        JobError, match=r"gives the inputs attention_mask, input_ids, .* names input_ids, mask"
    ):
        build_model(load_job_file(job_file), job_file.parent)


def test_adapters_in_frozen_blocks_train_as_they_are(spliteasy: Callable[..., Ran]) -> None:
    job, data = ROOT / "examples/text/job.toml", "examples.text.data:device_data"
    ran = spliteasy("parity", job, "--steps", 2, "--data", data)
    assert ran.code == 0, ran.out + ran.err
    assert ran.out.splitlines()[-1] == "max_abs_diff=0"


class Named(nn.Module):
    """Its inputs have an order of their own, and one of them has a default."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, scale: torch.Tensor, shift: float = 1.0, *, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.c(torch.tanh(self.b(self.a(x) * scale + shift)))}


def test_keywords_are_passed_by_name() -> None:
    model = Named()
    x, scale = torch.randn(5, 3), torch.rand(5, 1)
    parts = split(model, {"x": x, "scale": scale}, ("a", "b"), share_inputs=("scale",))
    assert parts.tail is not None
    made = parts.head(x, scale)
    (out,) = parts.tail(*parts.body(*made[: parts.head.n_wire]), *made[parts.head.n_wire :])
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out, model(scale, x=x)["out"])
    assert type(model) is Named
