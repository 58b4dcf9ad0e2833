"""A loss or freeze by tracing is refused by name, before anything trains; what a trace can keep is kept."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spliteasy import split
from spliteasy.errors import DataError, JobError
from spliteasy.splitting.losses import trace_function
from spliteasy.splitting.proof.plain_modes import fused_attention
from tests.models import untraceable
from tests.models.untraceable import Change, CheckpointedNorm, Mid, Net, Padded, Sign
from tests.splitting.parity import compare


def _parts(model: nn.Module) -> object:
    return split(model, torch.randn(4, 6), ("a", "mid"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, x: Sign.apply(x), "layer `mid` uses Sign, a torch.autograd.Function"),
        (lambda layer, x: layer.other(Sign.apply(x)), "layer `mid` uses Sign, a torch.autograd.Function"),
        (lambda _, x: untraceable.clipped(x), "layer `mid` uses Clipped, a torch.autograd.Function"),
        (untraceable.drops_by_random, "layer `mid` draws from Python's `random` in its forward"),
        (untraceable.drops_by_numpy, "layer `mid` draws from `numpy.random` in its forward (draw with torch"),
        (untraceable.draws_by_random_in_evaluation, "layer `mid` draws from Python's `random`"),
        (untraceable.draws_of_its_own, "layer `mid` gives something else when it is called again"),
        (untraceable.draws_from_the_module, "layer `mid` gives something else when it is called again"),
        (untraceable.counts_elsewhere, "layer `mid` gives something else when it is called again"),
        (untraceable.seeds_itself, "other values in output 0 on the example"),
        (untraceable.anneals, "layer `mid` changes its attribute `calls` in its forward"),
        (untraceable.warms_up, "layer `mid` changes its attribute `calls` in its forward"),
        (untraceable.warms_up_by_a_dictionary, "layer `mid` changes its attribute `counts.calls`"),
        (untraceable.warms_up_by_an_object, "layer `mid` changes its attribute `settings.calls`"),
        (untraceable.warms_up_by_the_class, "layer `mid` changes its attribute `Mid.all_calls`"),
        (untraceable.remembers, "it keeps `kept` from one call to the next"),
        (untraceable.averages_without_a_buffer, "writes into a tensor that is no buffer (average)"),
        (untraceable.hooks_a_tensor, "layer `mid` hangs a hook on a tensor"),
        (untraceable.hooks_a_node, "another gradient of `mid.linear.bias` on the example"),
        (untraceable.checks_the_batch, "other values in output 0 on one sample"),
        (untraceable.asks_for_gradients, "in evaluation mode gives other values in output 0"),
        (untraceable.knows_of_tracing, "in training mode gives other values in output 0"),
    ],
)
def test_refused_by_name(change: Change, message: str) -> None:
    with pytest.raises(JobError, match=re.escape(message)):
        _parts(Net(Mid(change)))


def _on_parameter(net: Net) -> None:
    net.get_parameter("mid.linear.weight").register_hook(lambda gradient: gradient * 0.5)


def _after_accumulation(net: Net) -> None:
    net.get_parameter("mid.linear.weight").register_post_accumulate_grad_hook(lambda p: None)


def _on_module(net: Net) -> None:
    net.mid.register_full_backward_hook(lambda module, inputs, outputs: None)


def _before_module(net: Net) -> None:
    net.mid.register_full_backward_pre_hook(lambda module, outputs: None)


@pytest.mark.parametrize(
    ("hang", "message"),
    [
        (_on_parameter, "parameter `mid.linear.weight` has a hook on its gradient"),
        (_after_accumulation, "parameter `mid.linear.weight` has a hook on its gradient"),
        (_on_module, "layer `mid` has a backward hook"),
        (_before_module, "layer `mid` has a backward hook"),
    ],
)
def test_hooks_on_gradients_are_refused(hang: Callable[[Net], None], message: str) -> None:
    model = Net(Mid(lambda _, x: x))
    hang(model)
    with pytest.raises(JobError, match=re.escape(message)):
        _parts(model)


def test_a_global_backward_hook_is_refused() -> None:
    handle = nn.modules.module.register_module_full_backward_hook(lambda module, inputs, outputs: None)
    try:
        with pytest.raises(JobError, match="every module has a backward hook"):
            _parts(Net(nn.Tanh()))
    finally:
        handle.remove()


def test_batch_norm_that_is_computed_again_is_refused() -> None:
    with pytest.raises(JobError, match=re.escape("other values in `mid.inner.1.running_mean` after a step")):
        _parts(Net(CheckpointedNorm()))


@pytest.mark.parametrize(
    "change",
    [
        untraceable.notes_and_counts,
        untraceable.teaches_in_inference_mode,
        untraceable.teaches_by_decorator,
        untraceable.teaches_without_gradients,
        untraceable.checkpoints,
    ],
)
def test_kept_exactly(change: Change) -> None:
    model = Net(Mid(change))
    parts = split(model, torch.randn(4, 6), ("a", "mid"))
    model.get_submodule("mid").__dict__["kept"] = None  # what nobody reads need not be copied
    assert compare(model, parts, [(torch.randn(size, 6),) for size in (4, 4, 3, 1)]) == {}


def test_buffers_that_a_layer_sets_anew_are_kept() -> None:
    model = Net(untraceable.Centred())
    parts = split(model, torch.randn(4, 6), ("a", "mid"))
    assert compare(model, parts, [(torch.randn(size, 6),) for size in (4, 4, 3, 1)]) == {}


def test_a_forward_that_writes_into_a_weight_is_refused() -> None:
    with pytest.raises(JobError, match=re.escape("into which the model writes")) as caught:
        _parts(Net(untraceable.WritesWeights()))
    assert "the optimizer alone changes parameters" in (caught.value.hint or "")


def test_forward_hooks_are_kept() -> None:
    model = Net(nn.Linear(6, 6))
    model.mid.register_forward_hook(lambda module, inputs, output: output * 2)
    model.mid.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    parts = split(model, torch.randn(4, 6), ("a", "mid"))
    assert compare(model, parts, [(torch.randn(4, 6),)] * 2) == {}


def test_the_model_and_all_generators_are_left_as_they_were() -> None:
    model = Net(Mid(untraceable.notes_and_counts))
    model.get_parameter("a.weight").grad = torch.ones(6, 6)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random.seed(5)
    np.random.seed(5)
    inputs = torch.randn(4, 6)
    generators = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    split(model, inputs, ("a", "mid"))
    assert generators[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(generators[2], torch.get_rng_state())
    mid = model.get_submodule("mid")
    assert (mid.calls, mid.kept, mid.log, Mid.all_calls) == (0, None, [], 0)
    assert torch.equal(model.get_parameter("a.weight").grad, torch.ones(6, 6))  # type: ignore[arg-type]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_fails_by_itself_is_named_so() -> None:
    def fails(layer: Mid, x: Tensor) -> Tensor:
        raise ValueError("no such thing")

    with pytest.raises(JobError, match=r"the model fails on the example in training mode.*no such thing"):
        _parts(Net(Mid(fails)))


def test_evaluation_without_the_fused_path_is_told() -> None:
    model = Padded()
    ids = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [1, 1, 1, 1], [2, 0, 0, 0]])
    with fused_attention(True):
        with pytest.warns(UserWarning, match="fused path of nn.TransformerEncoder gives other numbers"):
            parts = split(model, ids, ("enter", "mid"), share_inputs=("ids",))
        assert compare(model, parts, [(ids,)])["eval output 0"] > 0.1
    with fused_attention(False):
        assert compare(model, parts, [(ids,)]) == {}


def test_segments_take_the_traced_sizes_only() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mid, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.mid(self.a(x))).sum(1) / x.shape[1])

    parts = split(Mean(), torch.randn(4, 5, 6), ("a", "mid"))
    (up,) = parts.head(torch.randn(2, 5, 6))
    with pytest.raises(DataError, match=re.escape("head: x: expected shape (2, 5, 6), got (2, 7, 6)")):
        parts.head(torch.randn(2, 7, 6))
    with pytest.raises(DataError, match=re.escape("expected float32, got float64")):
        parts.body(up.double())
    assert parts.tail is not None
    with pytest.raises(DataError, match="only the batch size is free"):
        parts.tail(torch.randn(2, 4, 6))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda y, t: Sign.apply(y).mean() * t.float().mean(), "the loss uses Sign"),
        (lambda y, t: y.mean() * random.random(), "the loss draws from Python's `random`"),
        (lambda y, t: (y * torch.rand_like(y)).mean(), "the loss draws random numbers"),
        (lambda y, t: y.mean() if y.shape[0] > 1 else y.sum(), "the trace of the loss in training mode"),
    ],
)
def test_losses_are_proved_as_well(loss: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(JobError, match=re.escape(message)):
        trace_function(loss, (torch.randn(4, 3, requires_grad=True),), (torch.tensor([0, 1, 2, 0]),))
