"""Segments that went through bytes, to another process or to other threads, take the same steps."""

from __future__ import annotations

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spliteasy import split
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.splitting.split import split_traced
from tests.splitting.networks import SMALL, Cuts, traced
from tests.splitting.parity import differences, spawned, train_plainly, train_split

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "cuts"),
    [("transposed", ("a", "turn")), ("gpt with dropout", ("drop", "norm")), ("buffers", ("b", "norm"))],
)
def test_same_steps_in_another_process(name: str, cuts: Cuts, tmp_path: Path) -> None:
    split = split_traced(traced(name)[1], cuts)
    batches = {f"batch {step}": SMALL[name].batch(4)[0] for step in range(3)}
    for segment in split.segments:
        (tmp_path / f"{segment.name}.json").write_bytes(segment.graph_json())
        (tmp_path / f"{segment.name}.safetensors").write_bytes(segment.tensors_bytes())
    (tmp_path / "batches.safetensors").write_bytes(tensors_to_bytes(batches))
    command = [sys.executable, "-m", "tests.splitting.other_process", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    there = tensors_from_bytes((tmp_path / "seen.safetensors").read_bytes())
    here = train_split(spawned(split), [(batch,) for batch in batches.values()])
    assert differences(here, there) == {}


def test_threads_share_a_program() -> None:
    split = split_traced(traced("swin")[1], ("stage1.0.qkv", "stage2.0"))
    batches = [SMALL["swin"].batch(4) for _ in range(2)]

    def train(_: int) -> dict[str, Tensor]:
        torch.set_num_threads(1)
        return train_split(spawned(split), batches)

    with ThreadPoolExecutor(4) as threads:
        runs = list(threads.map(train, range(8)))
    assert all(differences(runs[0], other) == {} for other in runs[1:])


def test_a_segment_that_is_the_whole_flow_gives_gradients_to_autograd_too() -> None:
    """Inputs that are no leaves let the gradient through: segments can be chained in one process."""
    model, batch = copy.deepcopy(traced("chain")[0]), SMALL["chain"].batch(4)
    chained = spawned(split_traced(traced("chain")[1], ("stem", "pool")))
    assert chained.tail is not None
    (out,) = chained.tail(*chained.body(*chained.head(*batch)))
    assert isinstance(out, Tensor)
    out.square().sum().backward()
    model(*batch).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        owner = next(s for s in chained.segments if name in dict(s.named_parameters()))
        assert torch.equal(parameter.grad, owner.get_parameter(name).grad), name


def test_the_oracle_sees_a_difference() -> None:
    """A parity check that can't fail proves nothing."""
    model, found = traced("several outputs")
    split = spawned(split_traced(found, ("a", "b")))
    batches = [SMALL["several outputs"].batch(4) for _ in range(2)]
    with torch.no_grad():
        split.body.get_parameter("b.bias")[0] += 1e-6
    assert differences(train_plainly(copy.deepcopy(model), batches), train_split(split, batches))


def test_the_same_split_gives_the_same_bytes() -> None:
    batch = SMALL["unet"].batch(2)
    first, second = (split(traced("unet")[0], batch, ("down1", "up1")) for _ in range(2))
    for one, other in zip(first.segments, second.segments, strict=True):
        assert one.graph_json() == other.graph_json()
        assert one.tensors_bytes() == other.tensors_bytes()


def test_a_deep_copy_is_independent() -> None:
    head = split_traced(traced("chain")[1], "stem").head
    batch = SMALL["chain"].batch(3)
    twin = copy.deepcopy(head)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin.program is head.program
    (zero,), (value,) = twin.eval()(*batch), head.spawn().eval()(*batch)
    assert isinstance(zero, Tensor)
    assert isinstance(value, Tensor)
    assert not zero.any()
    assert value.any()
