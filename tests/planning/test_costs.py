"""Times and bytes are put where they belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from spliteasy.graph.segment import Segment
from spliteasy.job import JobSpec
from spliteasy.job.source import Source, load_source
from spliteasy.planning.costs import KINDS, OperatorCosts, measure
from spliteasy.planning.flow import Flow
from spliteasy.splitting.split import split_traced
from spliteasy.training.losses import LOSSES

NewSpec = Callable[..., JobSpec]


@pytest.fixture
def source(new_spec: NewSpec, tmp_path: Path) -> Source:
    return load_source(new_spec(), tmp_path)


def measured(source: Source, budget_s: float = 5.0) -> OperatorCosts:
    loss = LOSSES["cross_entropy"]
    return measure(source.traced, source.spec, loss, source.inputs, source.targets, budget_s=budget_s)


def test_every_operator_is_timed_both_ways(source: Source) -> None:
    costs = measured(source)
    heaviest = next(op.index for op in source.traced.train.ops if op.calls and op.calls[-1][0] == "heavy.2")
    assert costs.batch == costs.measured_batch == 16
    assert costs.forward_s[heaviest] > 0
    assert costs.backward_s[heaviest] > 0
    assert KINDS[costs.kinds[heaviest]] == "matmul"
    assert (costs.forward_s >= 0).all()
    assert (costs.backward_s >= 0).all()
    assert costs.loss_s > 0
    assert costs.apply_s > 0


def test_a_large_batch_is_scaled_from_a_smaller_one(source: Source) -> None:
    whole, part = measured(source), measured(source, budget_s=1e-9)
    assert part.measured_batch == 2
    assert part.batch == 16
    np.testing.assert_allclose(part.saved_first, whole.saved_first, rtol=0.01)
    np.testing.assert_allclose(part.working, whole.working, rtol=0.01)


def test_the_model_is_left_as_it_was(source: Source) -> None:
    before = {op.name: info.tensor.clone() for op, info in source.traced.train.tensors.items()}
    state = torch.random.get_rng_state()
    measured(source)
    assert torch.equal(torch.random.get_rng_state(), state)
    for op, info in source.traced.train.tensors.items():
        assert torch.equal(info.tensor, before[op.name])


def saved_bytes(segment: Segment, inputs: list[Tensor]) -> int:
    """Return what autograd keeps of a real segment's forward, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in segment.tensors().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = segment(*inputs)
    assert outputs
    return sum(kept.values())


@pytest.mark.parametrize("cuts", [("wide", "heavy"), ("narrow.0", "heavy.2")])
def test_saved_bytes_are_those_of_the_real_segments(source: Source, cuts: tuple[str, str]) -> None:
    costs, flow = measured(source), Flow(source.traced)
    split = split_traced(source.traced, cuts)
    first, second = (
        next(i for i, p in enumerate(flow.places) if cut in (p.cut, *names_at(flow, i))) for cut in cuts
    )
    inputs = [x[:16].clone() for x in source.inputs]
    assert flow.sums(costs.saved_first)[first] == saved_bytes(split.head, inputs)
    assert split.tail is not None
    down = [torch.randn(v.shape_for(16), requires_grad=v.needs_grad) for v in split.boundaries[1].values]
    in_tail = costs.saved_last.sum() - flow.sums(costs.saved_last)[second]
    assert in_tail == saved_bytes(split.tail, down)


def names_at(flow: Flow, index: int) -> list[str]:
    """All names of the place."""
    ends = flow.trace.ends
    return [path for (path, _), end in ends.items() if end == flow.places[index].position]
