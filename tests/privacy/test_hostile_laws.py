"""A law that comes from a job package is bounded, and calls nothing but what is allowed."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest

from spliteasy.errors import PortableError, PublicEnds
from spliteasy.privacy.ends import MAX_BYTES, draw, ends_from_json
from spliteasy.privacy.entropy import Weight, check_entropy
from spliteasy.runtime.randomness import Key

KEY = Key(bytes(32))
VIEW = {"memory": 0, "shape": [20, 20], "strides": [20, 1]}
GOOD: dict[str, Any] = {
    "law": {
        "memory": [{"dtype": "float32", "size": 400}, {"dtype": "float32", "size": 400}],
        "views": [VIEW, {**VIEW, "memory": 1}],
        "steps": [
            {"op": "normal", "args": [0.0, 1.0], "out": [0]},
            {"op": "aten.mul.Tensor", "args": [{"ref": 0}, 0.5], "out": [1]},
        ],
    },
    "drawn": {"head": {"weight": 1}},
}


def changed(path: str, value: Any) -> bytes:
    """The good ends but for one value."""
    ends = copy.deepcopy(GOOD)
    *parts, last = (int(part) if part.isdecimal() else part for part in path.split("/"))
    where = ends
    for part in parts:
        where = where[part]
    where[last] = value
    return orjson.dumps(ends)


def test_the_good_one_is_drawn() -> None:
    weight = draw(ends_from_json(orjson.dumps(GOOD)), KEY)["head"]["weight"]
    assert 0.4 < float(weight.std()) < 0.6


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("law/steps/0/op", "os.system"),
        ("law/steps/1/op", "aten.set_.source_Tensor"),
        ("law/steps/1/op", "aten.resize_.default"),
        ("law/steps/1/op", "aten.empty.memory_format"),
        ("law/steps/1/op", "aten.from_file.default"),
        ("law/steps/0/args", [0.0]),
        ("law/steps/0/args", [0.0, "1"]),
        ("law/steps/0/args", [0.0, None]),
        ("law/steps/0/args", [{"ref": 0}, 1.0]),
        ("law/steps/0/out", []),
        ("law/steps/0/out", [2]),
        ("law/steps/0/out", [-1]),
        ("law/views/0/memory", 2),
        ("law/views/0/shape", [20, 21]),
        ("law/views/0/offset", 1),
        ("law/views/0/offset", -1),
        ("law/views/0/strides", [20]),
        ("law/views/0/strides", [1 << 29, 1]),
        ("law/views/0/shape", [1 << 15, 1 << 15]),
        ("law/memory/0/size", 1 << 28),
        ("law/memory/0/size", 1 << 40),
        ("law/memory/0/dtype", "complex64"),
        ("law/memory", []),
        ("law/version", 2),
        ("law/more", 1),
        ("drawn/head/weight", 2),
        ("drawn/head/weight", -1),
        ("drawn/body", {"weight": 1}),
        ("public", {"head": {"weight": "because I say so\nand more"}}),
        ("format", "other"),
    ],
)
def test_what_does_not_fit_is_refused_before_it_runs(path: str, value: Any) -> None:
    with pytest.raises(PortableError):
        ends_from_json(changed(path, value))


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * (MAX_BYTES + 1)])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(PortableError):
        ends_from_json(data)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("aten.mul.Tensor", [{"ref": 7}, 0.5]),
        ("aten.mul.Tensor", ["text", 0.5]),
        ("aten.mul.Tensor", []),
        ("aten.ones.default", [[1 << 40]]),
        ("aten.arange.default", [1 << 40]),
        ("aten.eye.default", [1 << 20]),
        ("aten.outer.default", [{"ref": 0}, {"ref": 0}]),
        ("aten.repeat.default", [{"ref": 0}, [1 << 20, 1 << 20]]),
        ("aten.sum.default", [{"ref": 0}]),
        ("aten.linalg_qr.default", [{"ref": 0}]),
    ],
)
def test_what_an_operator_refuses_or_inflates_is_told(op: str, args: list[Any]) -> None:
    ends = ends_from_json(changed("law/steps/1", {"op": op, "args": args, "out": [1]}))
    with pytest.raises(PortableError, match="law"):
        draw(ends, KEY)


WEIGHT = Weight("head", "weight", 400)
ONE = {"memory": 0, "shape": [1], "strides": [1]}


def test_a_law_with_entropy_passes() -> None:
    check_entropy(ends_from_json(orjson.dumps(GOOD)), [WEIGHT])


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [{"op": "aten.fill_.Scalar", "args": [{"ref": 1}, 0.5]}],
        [{"op": "normal", "args": [0.1, 0.0], "out": [1]}],
        [{"op": "uniform", "args": [0.1, 0.1001], "out": [1]}],
        [{"op": "normal", "args": [0.0, 1e-7], "out": [1]}],
        [{"op": "bernoulli", "args": [0.001], "out": [1]}],
        [
            {"op": "normal", "args": [0.0, 1.0], "out": [1]},
            {"op": "aten.copy_.default", "args": [{"ref": 1}, {"ref": 2}]},
        ],
        [  # a generator of one's own, begun from one number
            {"op": "uniform", "args": [0.0, 1.0], "out": [0]},
            {"op": "uniform", "args": [0.0, 1.0], "out": [2]},
            {"op": "aten.copy_.default", "args": [{"ref": 0}, {"ref": 2}]},
            {"op": "aten.cumsum.default", "args": [{"ref": 3}, 0], "out": [4]},
            {"op": "aten.mul_.Tensor", "args": [{"ref": 4}, 997.0]},
            {"op": "aten.sin.default", "args": [{"ref": 0}], "out": [1]},
        ],
    ],
)
def test_a_law_that_leaves_nothing_to_guess_is_refused(steps: list[dict[str, Any]]) -> None:
    ends = copy.deepcopy(GOOD)
    flat = {"memory": 0, "shape": [400], "strides": [1]}
    ends["law"]["memory"].append({"dtype": "float32", "size": 1})
    ends["law"]["views"] += [{**ONE, "memory": 2}, flat, flat]
    ends["law"]["steps"] = steps
    with pytest.raises(PublicEnds, match="'weight' nearly the same initial values"):
        check_entropy(ends_from_json(orjson.dumps(ends)), [WEIGHT])


def test_a_weight_that_has_no_law_and_is_not_called_public_is_refused() -> None:
    ends = ends_from_json(orjson.dumps(GOOD))
    with pytest.raises(PublicEnds, match="'bias2d'"):
        check_entropy(ends, [WEIGHT, Weight("tail", "bias2d", 400)])
    public = ends_from_json(changed("public", {"tail": {"bias2d": "loaded"}}))
    check_entropy(public, [WEIGHT, Weight("tail", "bias2d", 400)])
