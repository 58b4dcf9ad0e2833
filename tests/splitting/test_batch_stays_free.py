"""Tracing pins no batch size: a composite operator that asks for sizes must not either (an LSTM once did)."""

from __future__ import annotations

import pytest

from spliteasy.graph.document import FreeDim
from spliteasy.splitting.lowering import value_spec
from tests.splitting.networks import SMALL, traced


@pytest.mark.parametrize("name", SMALL)
def test_inputs_and_outputs_grow_with_the_batch(name: str) -> None:
    _, model = traced(name)
    for trace in (model.train, model.eval):
        for op in trace.inputs:
            assert value_spec(op).shape[0] == FreeDim(batch=1), op
        for op in trace.outputs:
            assert value_spec(op).per_batch, op
