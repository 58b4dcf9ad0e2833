"""The recorded calls of operators are those of the cases, with the results and gradients of PyTorch."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spliteasy.graph.document import DTYPES
from spliteasy.graph.encoding import document_from_json
from spliteasy.graph.program import Program
from tests.web.book import FOLDER
from tests.web.cases import cases

RECORDED = json.loads((FOLDER / "operators.json").read_text())


def test_every_case_is_recorded() -> None:
    """Where this fails, write the vectors again: `python -m tests.web`."""
    made = {case.name: case.vector()["graph"] for case in cases()}
    assert {vector["name"]: vector["graph"] for vector in RECORDED} == made


def test_pytorch_computes_what_is_recorded() -> None:
    for vector in RECORDED:
        document = document_from_json(base64.b64decode(vector["graph"]))
        leaves = [
            tensor_of(packed).requires_grad_(spec.needs_grad)
            for packed, spec in zip(vector["inputs"], document.train.inputs, strict=True)
        ]
        outputs = Program(document).train([], leaves)
        for ours, packed, weight in zip(outputs, vector["outputs"], vector["weights"], strict=True):
            assert isinstance(ours, Tensor)
            torch.testing.assert_close(ours.detach(), tensor_of(packed), equal_nan=True)
            if weight is not None:
                ours.backward(tensor_of(weight), retain_graph=True)
        for leaf, packed in zip(leaves, vector["gradients"], strict=True):
            assert (leaf.grad is None) == (packed is None), vector["name"]
            if leaf.grad is not None:
                torch.testing.assert_close(leaf.grad, tensor_of(packed))


def tensor_of(packed: dict[str, Any]) -> Tensor:
    dtype = DTYPES[packed["dtype"]]
    raw = np.frombuffer(bytearray(base64.b64decode(packed["data"])), np.uint8)
    return torch.from_numpy(raw).view(dtype).reshape(packed["shape"])
