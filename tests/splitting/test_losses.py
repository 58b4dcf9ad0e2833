"""A user's loss travels as a graph of outputs and targets."""

from __future__ import annotations

import orjson
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spliteasy import PortableLoss, load_function, trace_function
from spliteasy.errors import JobError, PortableError
from spliteasy.graph.program import Batches


def smoothed(output: Tensor, target: Tensor) -> Tensor:
    weights = torch.tensor([1.0, 2.0, 0.5])
    return F.cross_entropy(output, target, weight=weights, label_smoothing=0.1)


def two_heads(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs[0], targets) + 0.4 * F.cross_entropy(outputs[1], targets)


def travelled(loss: PortableLoss) -> PortableLoss:
    loaded = load_function(loss.graph_json(), loss.tensors())
    assert loaded.graph_json() == loss.graph_json()
    return loaded


def test_one_output() -> None:
    output, target = torch.randn(5, 3, requires_grad=True), torch.tensor([0, 2, 1, 1, 0])
    loss = travelled(trace_function(smoothed, (torch.randn(4, 3),), (target[:4],)))
    (wanted,) = torch.autograd.grad(smoothed(output, target), output)
    (got,) = torch.autograd.grad(loss([output], [target]), output)
    assert torch.equal(wanted, got)


def test_several_outputs() -> None:
    outputs, target = (torch.randn(4, 3), torch.randn(4, 3)), torch.tensor([0, 2, 1, 1])
    loss = travelled(trace_function(two_heads, outputs, (target,)))
    assert torch.equal(loss(outputs, [target]), two_heads(outputs, target))


def test_a_loss_is_one_number() -> None:
    with pytest.raises(JobError, match="one scalar"):
        trace_function(lambda out, _: out, (torch.randn(4, 3),), (torch.randn(4),))


def test_a_segment_is_no_loss() -> None:
    loss = trace_function(smoothed, (torch.randn(4, 3),), (torch.tensor([0, 1, 2, 0]),))
    graph = loss.graph_json().replace(b'"results":[5]', b'"results":[2]')
    if graph == loss.graph_json():
        pytest.fail("the graph changed: mutate another place")
    with pytest.raises(PortableError):
        load_function(graph, loss.tensors())


def among_themselves(output: Tensor, target: Tensor) -> Tensor:
    """A contrastive loss, which compares each sample of a batch with each other."""
    return F.cross_entropy(output @ output.T, target)


def test_a_loss_is_checked_at_the_jobs_batches() -> None:
    """It takes little at two samples, and too much at the job's."""
    loss = trace_function(among_themselves, (torch.randn(4, 3),), (torch.tensor([0, 2, 1, 1]),))
    graph, tensors = loss.graph_json(), loss.tensors()
    costs = load_function(graph, tensors, batches=Batches(train=(1000,), eval=(10,))).costs
    assert 1000**2 * 4 <= costs.train_bytes < 10 * 1000**2 * 4
    for batches in (Batches(train=(60_000,), eval=(2,)), Batches(train=(2,), eval=(60_000,))):
        with pytest.raises(PortableError, match=r"segment 'loss', .*\(60000, 60000\)"):
            load_function(graph, tensors, batches=batches)


def test_a_loss_is_the_same_in_training_and_evaluation() -> None:
    """A graph that only evaluation would have could be checked in place of the one that is run."""
    loss = trace_function(smoothed, (torch.randn(4, 3),), (torch.tensor([0, 1, 2, 0]),))
    document = orjson.loads(loss.graph_json())
    document["eval"]["nodes"][-1]["op"] = "aten.relu.default"
    document["eval"]["nodes"][-1]["args"] = document["eval"]["nodes"][-1]["args"][:1]
    with pytest.raises(PortableError):
        load_function(orjson.dumps(document), loss.tensors())
