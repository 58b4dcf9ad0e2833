"""Whatever the bytes, the loader gives a segment or raises `PortableError`, and does so soon."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import orjson
import pytest

from spliteasy import Segment, load_segment
from spliteasy.errors import PortableError
from spliteasy.graph.operators import ATEN, BUILTINS
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.splitting.split import split_traced
from tests.splitting.networks import Cuts, traced

SOURCES: tuple[tuple[str, Cuts], ...] = (
    ("chain", ("stem", "pool")),
    ("swin", ("stage1.0.qkv", "stage2.0")),
    ("lstm", ("enter", "norm")),
    ("only a number", ("mean", "b")),
    ("written in place", ("act#1", "c")),
)
OPERATORS = sorted(ATEN | BUILTINS.keys())
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 65_536, 2**31, 2**31 - 1, -(2**31), 2**53, 2**53 + 1,
    -(2**63), 2**63 - 1, 2**64, 10**30, 0.0, -0.5, 1e-300, 1e308, "", "float32", "int64", "bool",
    "constant", "reflect", "aten.add.Tensor", "os.system", "__import__", "x" * 1000, [], {},
    [[[[[[[]]]]]]], [0] * 5000, {"ref": 0}, {"ref": 10**9}, {"ref": -1}, {"ref": True}, {"ref": [0]},
    {"dtype": "float64"}, {"dtype": "object"}, {"float": "inf"}, {"float": "nan"}, {"float": "x"},
    {"batch": 1}, {"batch": 2**31}, {"batch": -1, "plus": 5}, {"batch": 1, "plus": -(2**31)},
    {"memory_format": "channels_last"}, {"device": "cpu"}, {"a": 1, "b": 2},
)  # fmt: skip


def segments() -> list[Segment]:
    return [segment for name, cuts in SOURCES for segment in split_traced(traced(name)[1], cuts).segments]


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value within a JSON document."""
    found = [path] if path else []
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutated(document: Any, paths: list[tuple[Any, ...]], dice: random.Random) -> Any:
    """The document with one to three values replaced, removed, doubled, swapped or moved a little."""
    document = copy.deepcopy(document)
    for _ in range(dice.randint(1, 3)):
        *path, last = dice.choice(paths)
        try:
            owner = document
            for key in path:
                owner = owner[key]
            old = owner[last]
        except (LookupError, TypeError):
            continue
        if not isinstance(owner, dict | list):
            continue
        kind = dice.randrange(7)
        if kind == 0 and isinstance(owner, dict):
            del owner[last]
        elif kind == 1 and isinstance(owner, list):
            owner.insert(last, old)
        elif kind == 2 and isinstance(owner, list):
            other = dice.randrange(len(owner))
            owner[last], owner[other] = owner[other], owner[last]
        elif kind == 3 and isinstance(old, int | float):
            owner[last] = old + dice.choice((-2, -1, 1, 2)) if abs(old) < 2**60 else 0
        elif last == "op" or (kind == 4 and isinstance(old, str)):
            owner[last] = dice.choice(OPERATORS)
        elif kind == 5 and isinstance(old, int):
            owner[last] = old * dice.choice((2, 10, 1000, 10**6))
        else:
            owner[last] = dice.choice(NASTY)
    return document


def written(document: Any) -> bytes:
    return json.dumps(document).encode()  # orjson has no integers over 64 bits


def try_to_load(data: bytes, segment: Segment) -> bool:
    try:
        return isinstance(load_segment(data, segment.tensors()), Segment)
    except PortableError:
        return False


def fuzz(rounds: int, seed: int) -> int:
    """Return how many of the mutated graphs loaded."""
    dice, loaded = random.Random(seed), 0
    sources = [(segment, orjson.loads(segment.graph_json())) for segment in segments()]
    prepared = [(segment, document, places(document)) for segment, document in sources]
    for _ in range(rounds):
        segment, document, paths = dice.choice(prepared)
        loaded += try_to_load(written(mutated(document, paths, dice)), segment)
    return loaded


def test_a_few_hundred_mutations() -> None:
    loaded = fuzz(400, seed=1)
    assert 0 < loaded < 300


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_many_mutations(seed: int) -> None:
    assert fuzz(3000, seed=100 + seed) > 0


def test_mutated_bytes() -> None:
    dice = random.Random(3)
    segment = segments()[0]
    graph, tensors = segment.graph_json(), tensors_to_bytes(segment.tensors())
    for _ in range(300):
        try_to_load(noisy(graph, dice), segment)
        try:
            tensors_from_bytes(noisy(tensors, dice))
        except PortableError:
            continue


def noisy(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        place = dice.randrange(min(len(changed), 4000))
        kind = dice.randrange(3)
        if kind == 0:
            changed[place] = dice.randrange(256)
        elif kind == 1:
            del changed[place : place + dice.randint(1, 9)]
        else:
            changed[place:place] = changed[dice.randrange(len(changed)) :][: dice.randint(1, 40)]
    return bytes(changed)
