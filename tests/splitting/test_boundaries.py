"""Boundaries: what crosses, what stays, and how a segment describes it."""

from __future__ import annotations

import torch
from torch import Tensor

from spliteasy import split
from spliteasy.errors import JobError
from spliteasy.graph.document import FreeDim
from spliteasy.splitting.places import cut_places
from spliteasy.splitting.split import split_traced
from tests.models.oddities import Frozen, Noisy
from tests.splitting.crossing import crossing, legal_pairs
from tests.splitting.networks import traced


def test_an_outer_skip_never_travels() -> None:
    parts = split_traced(traced("unet")[1], ("enter", "up2"))
    assert parts.tail is not None
    names = [[value.name for value in boundary.values] for boundary in parts.boundaries]
    assert names == [["relu_"], ["relu__4"]]
    both = split_traced(traced("unet")[1], ("enter", "up1"))
    assert [value.name for value in both.skips] == ["relu_"]
    assert both.skips[0].name in [value.name for value in both.boundaries[0].values]
    assert both.head.n_wire == 1
    assert len(both.head.output_values) == 2


def test_values_say_what_they_are() -> None:
    parts = split_traced(traced("masked transformer")[1], ("layer1.linear1", "layer2"))
    kinds = {(value.dtype, value.needs_grad) for value in parts.boundaries[0].values}
    assert kinds == {("float32", True), ("bool", False)}
    made = parts.head(torch.randint(0, 20, (5, 12)))
    for spec, value in zip(parts.head.output_values, made, strict=True):
        assert spec.problem_with(value, 5) is None
        assert spec.problem_with(value, 4) is not None
        if isinstance(value, Tensor):
            assert value.requires_grad == spec.needs_grad
            assert spec.problem_with(value.double(), 5) is not None


def test_a_number_crosses_when_no_tensor_shows_it() -> None:
    parts = split_traced(traced("only a number")[1], ("mean", "b"))
    numbers = [value for value in parts.boundaries[0].values if value.is_int]
    assert [value.shape for value in numbers] == [(FreeDim(batch=1),)]
    assert parts.head(torch.randn(7, 6))[1] == 7
    assert numbers[0].problem_with(7, 7) is None
    assert numbers[0].problem_with(8, 7) is not None
    assert not any(value.is_int for value in split_traced(traced("vit")[1], "patches").boundaries[0].values)


def test_weights_do_not_travel() -> None:
    parts = split_traced(traced("early weights")[1], ("a", "tanh"))
    names = [[value.name for value in boundary.values] for boundary in parts.boundaries]
    assert names == [["linear"], ["exp", "tanh_1"]]
    assert set(parts.head.state_dict()) == {"a.weight", "a.bias"}
    assert {"own", "both"} < set(parts.body.state_dict())
    assert parts.tail is not None
    assert "late" in parts.tail.state_dict()


def test_windows_grow_with_the_batch() -> None:
    parts = split_traced(traced("swin")[1], "stage1.0.qkv")
    shapes = {value.shape for value in parts.boundaries[0].values}
    assert (FreeDim(batch=16), 16, 24) in shapes


def test_frozen_and_unused_parameters() -> None:
    model = Frozen()
    parts = split(model, torch.randn(2, 6), ("a", "norm"))
    assert {name for name, p in parts.head.named_parameters() if p.requires_grad} == set()
    assert not parts.boundaries[0].values[0].needs_grad
    assert parts.boundaries[0].grad_bytes_for(8) == 0
    assert parts.boundaries[0].bytes_for(8) == 8 * 6 * 4
    assert "unused" in parts.body.state_dict()
    assert parts.state_dict().keys() == model.state_dict().keys()


def test_buffers_that_the_state_dict_leaves_out() -> None:
    parts = split_traced(traced("buffers")[1], ("b", "norm"))
    assert "scale" in parts.head.tensors()
    assert "scale" not in parts.head.state_dict()
    assert "steps" in parts.head.state_dict()


def test_random_segments_are_known() -> None:
    parts = split(Noisy(), torch.randn(2, 6), ("a", "drop"))
    assert [segment.has_random for segment in parts.segments] == [False, True, True]
    assert not any(segment.has_random_eval for segment in parts.segments)


def test_spawned_segments_are_independent() -> None:
    parts = split_traced(traced("frozen")[1], "a")
    first, second = parts.body.spawn(), parts.body.spawn({"c.bias": torch.full((3,), 5.0)})
    assert first.program is second.program
    assert torch.equal(second.get_parameter("c.bias"), torch.full((3,), 5.0))
    with torch.no_grad():
        first.get_parameter("c.weight").zero_()
    assert bool(parts.body.get_parameter("c.weight").any())
    assert not parts.head.spawn().get_parameter("a.weight").requires_grad
    assert not first.eval().spawn().training


def test_legal_pairs_are_the_ones_that_split() -> None:
    _, model = traced("two inputs")
    places = [name for name, _, _ in cut_places(model.train)]
    pairs = {(first, second) for first, second, _ in legal_pairs(model)}
    for first in places:
        for second in places:
            try:
                split_traced(model, (first, second))
            except JobError:
                assert (first, second) not in pairs
            else:
                assert (first, second) in pairs


def test_places_come_in_order() -> None:
    places = cut_places(traced("chain")[1].train)
    assert [name for name, _, _ in places][:3] == ["stem.0", "stem.1", "stem"]
    assert places[2][2] == ("stem.2",)
    assert [position for _, position, _ in places] == sorted(position for _, position, _ in places)


def test_what_crosses_in_bytes() -> None:
    there = crossing(traced("chain")[1], ("stem", "pool"))
    assert there.bytes_up(4) == 4 * (6 * 64 + 8 * 4) * 4
    assert there.bytes_down(4) == there.bytes_up(4)
    assert sum(there.parameters) == sum(p.numel() for p in traced("chain")[0].parameters())
