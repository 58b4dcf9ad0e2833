"""The loader refuses what is not allowed, one by one, and tensors keep their layout."""

from __future__ import annotations

import copy
import re
from typing import Any

import orjson
import pytest
import torch

from spliteasy import load_segment, split
from spliteasy.errors import PortableError
from spliteasy.graph import limits
from spliteasy.graph.operators import ATEN, BUILTINS, operator_of
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from tests.models.oddities import Transposed

ROW = {"name": "x", "dtype": "float32", "shape": [{"batch": 1}, 4]}
WEIGHT = {"names": ["w"], "kind": "parameter", "dtype": "float32", "shape": [4], "requires_grad": True}
TENSORS = {"w": torch.ones(4)}


def document(*nodes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A segment with weight 0, input 1 and these nodes from 2 on; the last one is the output."""
    graph = {"inputs": [ROW], "nodes": list(nodes), "results": [1 + len(nodes)], "outputs": [ROW], "wire": 1}
    graph |= {key: changes.pop(key) for key in list(changes) if key in graph}
    whole = {"format": "spliteasy-graph", "version": 1, "name": "body", "tensors": [WEIGHT]}
    return whole | {"train": graph, "eval": copy.deepcopy(graph)} | changes


def node(op: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "args": list(args), "kwargs": kwargs}


def ref(slot: int) -> dict[str, int]:
    return {"ref": slot}


SCALE = node("aten.mul.Tensor", ref(1), ref(0))


def test_a_good_one_loads() -> None:
    segment = load_segment(orjson.dumps(document(SCALE)), TENSORS)
    assert torch.equal(segment(torch.full((3, 4), 2.0))[0], torch.full((3, 4), 2.0))
    again = load_segment(segment.graph_json(), segment.tensors())
    assert again.graph_json() == segment.graph_json()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown operator": (document(node("aten.from_file.default", "/etc/passwd")), "not on the list"),
    "python": (document(node("os.system", "true")), "not on the list"),
    "attribute": (document(node("aten.add.Tensor.__class__", ref(1))), "not on the list"),
    "itself": (document(node("aten.mul.Tensor", ref(2), ref(0))), "not computed before"),
    "later value": (document(node("aten.relu.default", ref(3)), SCALE), "not computed before"),
    "dangling": (document(node("aten.relu.default", ref(99))), "not computed before"),
    "dangling output": (document(SCALE, results=[7]), "does not exist"),
    "no description of an output": (document(SCALE, outputs=[]), "differ in count"),
    "more on the wire than there is": (document(SCALE, wire=2), "differ in count"),
    "another shape": (document(SCALE, outputs=[ROW | {"shape": [{"batch": 1}, 5]}]), "expected shape"),
    "another dtype": (document(SCALE, outputs=[ROW | {"dtype": "float64"}]), "expected float64"),
    "wrong arguments": (document(node("aten.conv2d.default", ref(1), ref(0))), "can't run"),
    "too many arguments": (document(node("aten.relu.default", *[ref(1)] * 65)), "malformed"),
    "huge tensor": (document(node("aten.zeros.default", [10**6, 10**6])), "over the limits"),
    "huge repeat": (document(node("aten.repeat.default", ref(1), [10**9, 10**3])), "over the limits"),
    "huge integer": (document(node("aten.mul.Scalar", ref(1), 2**53 + 1)), "2^53"),
    "huge product": (document(node("int.mul", 2**40, 2**40)), "2^53"),
    "product of a list": (document(node("int.mul", [1], 10**9)), "can't run"),
    "pieces without end": (
        document(node("aten.expand.default", ref(1), [10**6, -1, 4]), node("aten.unbind.int", ref(2))),
        "pieces",
    ),
    "deep list": (document(node("aten.relu.default", [[[[[[1]]]]]])), "nested too deeply"),
    "long list": (document(node("aten.relu.default", [0] * 5000)), "too long"),
    "long text": (document(node("aten.relu.default", "x" * 300)), "text of"),
    "unknown tag": (document(node("aten.relu.default", {"code": "1"})), "unknown form"),
    "own device": (document(node("aten.ones_like.default", ref(1), device="cuda")), "own device"),
    "writes its input": (document(node("aten.mul_.Tensor", ref(1), 2.0)), "writes into"),
    "writes a view of its input": (
        document(node("aten.view.default", ref(1), [-1]), node("aten.mul_.Tensor", ref(2), 2.0), results=[1]),
        "writes into",
    ),
    "writes a parameter": (
        document({**node("aten.mul_.Tensor", ref(0), 2.0), "grad": False}, results=[1]),
        "writes",
    ),
    "another version": (document(SCALE, version=2), "version"),
    "another format": (document(SCALE, format="pickle"), "format"),
    "unknown key": (document(SCALE, code="print()"), "malformed"),
    "name twice": (document(SCALE, tensors=[WEIGHT, WEIGHT]), "used twice"),
    "empty name": (document(SCALE, tensors=[WEIGHT | {"names": ["a..b"]}]), "malformed"),
    "gradient of a buffer": (document(SCALE, tensors=[WEIGHT | {"kind": "buffer"}]), "can't require"),
    "gradient of an integer": (document(SCALE, tensors=[WEIGHT | {"dtype": "int64"}]), "can't require"),
    "negative batch": (
        document(SCALE, inputs=[ROW | {"shape": [{"batch": 1, "plus": -9}, 4]}]),
        "impossible shape",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    wrong, message = REFUSED[name]
    with pytest.raises(PortableError, match=re.escape(message)):
        load_segment(orjson.dumps(wrong), TENSORS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"format": NaN}',
        b'"' + b"x" * limits.GRAPH_BYTES,
    ],
)
def test_bytes_that_are_no_document(data: bytes) -> None:
    with pytest.raises(PortableError):
        load_segment(data, TENSORS)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_bare_infinities(text: str) -> None:
    data = orjson.dumps(document(node("aten.mul.Scalar", ref(1), 0.125))).replace(b"0.125", text.encode())
    with pytest.raises(PortableError):
        load_segment(data, TENSORS)


def test_tagged_infinities() -> None:
    fill = node("aten.full_like.default", ref(1), {"float": "-inf"})
    (value,) = load_segment(orjson.dumps(document(fill)), TENSORS)(torch.zeros(2, 4))
    assert torch.equal(value, torch.full((2, 4), float("-inf")))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "missing"),
        ({"w": torch.ones(5)}, "the graph says"),
        ({"w": torch.ones(4, dtype=torch.float64)}, "the graph says"),
        ({"w": torch.ones(4), "v": torch.ones(4)}, "no tensor named"),
    ],
)
def test_tensors_that_do_not_fit(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PortableError, match=message):
        load_segment(orjson.dumps(document(SCALE)), tensors)


def test_names_of_ours_are_free_for_the_model() -> None:
    names = ["forward.name", "_program.weight", "training"]
    table = [WEIGHT | {"names": [name]} for name in names]
    nodes = [node("aten.mul.Tensor", ref(3 + i), ref(i)) for i in range(3)]
    segment = load_segment(
        orjson.dumps(document(*nodes, tensors=table, results=[6])), dict.fromkeys(names, torch.ones(4))
    )
    assert list(segment.state_dict()) == ["training", "forward.name", "_program.weight"]
    assert segment(torch.ones(2, 4))[0].shape == (2, 4)
    assert segment.name == "body"


@pytest.mark.parametrize(
    "op", [node("aten.empty_like.default", ref(1)), node("aten.new_empty.default", ref(1), [2, 4])]
)
def test_memory_of_others_is_never_shown(op: dict[str, Any]) -> None:
    used = [torch.full((2, 4), 7.0) for _ in range(50)]
    del used
    segment = load_segment(orjson.dumps(document(op, outputs=[ROW | {"shape": [2, 4]}])), TENSORS)
    assert not any(segment(torch.ones(2, 4))[0].any() for _ in range(50))


def test_every_operator_on_the_list_exists() -> None:
    assert all(callable(operator_of(name)) for name in ATEN | BUILTINS.keys())


def test_layouts_survive() -> None:
    tensors = {
        "plain": torch.randn(3, 4, 5),
        "turned": torch.randn(4, 5, 3).permute(2, 0, 1),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "one row": torch.randn(1, 6).t(),
        "slice": torch.randn(6, 6)[::2, 1:4],
        "half": torch.randn(4, dtype=torch.bfloat16),
        "yes or no": torch.tensor([True, False]),
    }
    back = tensors_from_bytes(tensors_to_bytes(tensors))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor)
        if name != "slice":
            assert back[name].stride() == tensor.stride(), name
    assert tensors_to_bytes(dict(reversed(tensors.items()))) == tensors_to_bytes(tensors)


def test_a_channels_last_weight_stays_one() -> None:
    parts = split(Transposed(), torch.randn(2, 3, 8, 8), "a")
    loaded = load_segment(parts.head.graph_json(), tensors_from_bytes(parts.head.tensors_bytes()))
    assert loaded.get_parameter("a.weight").is_contiguous(memory_format=torch.channels_last)
    assert not loaded.get_parameter("a.weight").is_contiguous()


@pytest.mark.parametrize(
    "strides",
    [
        "[1]",
        '{"w": [0, 0]}',
        '{"w": "31"}',
        '{"v": [1]}',
        "{",
        '{"w": [2, 1]}',
        '{"w": [-3, 1]}',
        '{"w": [1]}',
    ],
)
def test_strides_are_checked(strides: str) -> None:
    from safetensors.torch import save

    with pytest.raises(PortableError, match="strides"):
        tensors_from_bytes(save({"w": torch.ones(2, 3)}, {"strides": strides}))
