"""The loss leaves the device only where the job says so, and then once a step."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import pytest

from broker import decode
from broker.protocol import messages as m
from broker.protocol.assembler import Assembled, Assembler
from broker.transport.faults import FAULTLESS, Faultless, Verdict
from broker.transport.in_process import MemoryBroker
from broker.transport.topology import device_of_key
from device_agent.config import AgentConfig
from testing import serving
from tests.device.served import toy_job
from tests.drawn import SECRET
from tests.simulation import toy


class Listening(Faultless):
    """Reads what the device sends."""

    def __init__(self) -> None:
        self.backwards: list[m.Backward] = []
        self._assembler = Assembler()

    def on_publish(self, principal: str, target: str, frame: bytes) -> Verdict:
        if device_of_key(target) is not None:
            outcome = self._assembler.add(principal, frame)
            if isinstance(outcome, Assembled) and isinstance(message := decode(outcome.body), m.Backward):
                self.backwards.append(message)
        return FAULTLESS


@pytest.mark.parametrize("share_loss", [False, True])
async def test_each_step_tells_its_loss_once_or_never(share_loss: bool, tmp_path: Path) -> None:
    variant = toy.Variant(batch=7, micro_batches=2, epochs=2, share_loss=share_loss)
    heard, broker = Listening(), MemoryBroker()
    broker.policy = heard
    config = AgentConfig(job="toy", device="phone-1", data=toy.DATA, secret=SECRET, state=tmp_path)
    async with serving(toy_job(variant), broker=broker) as cluster:
        result, _ = await cluster.train(config)
    assert result.done
    assert len(heard.backwards) == 2 * result.step
    for backward in heard.backwards:
        told = backward.loss is not None and isfinite(backward.loss)
        assert told is (share_loss and backward.micro == 1), "with the last part, of the whole batch"
