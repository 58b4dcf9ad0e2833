"""The harness for users' tests: it sees a wrong bit, and hands on what a device raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_agent.config import AgentConfig
from server_worker.replica.direct_body import DirectBody
from spliteasy.errors import DataError
from testing import assert_parity, serving
from tests.drawn import SECRET
from tests.simulation import toy

DIGITS = Path(__file__).resolve().parents[1] / "examples/digits/job.toml"


def test_a_job_of_plain_pytorch_bits_passes() -> None:
    assert_parity(DIGITS, steps=2)


def test_one_wrong_element_fails_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DirectBody.snapshot

    def wrong(self: DirectBody) -> toy.State:
        state = right(self)
        next(value for name, value in sorted(state.items()) if name.endswith("weight")).view(-1)[0] += 1e-3
        return state

    monkeypatch.setattr(DirectBody, "snapshot", wrong)
    with pytest.raises(AssertionError, match=r"phone-1, step 2: other bits than plain PyTorch in .*weight"):
        assert_parity(DIGITS, steps=2)


async def test_what_a_device_raises_is_raised(tmp_path: Path) -> None:
    data = "tests.test_testing:no_data"
    config = AgentConfig(job="toy", device="phone-1", data=data, secret=SECRET, state=tmp_path)
    async with serving(toy.job(toy.Variant())) as cluster:
        with pytest.raises(DataError):
            await cluster.train(config)
    with pytest.raises(DataError):
        async with serving(toy.job(toy.Variant())) as cluster:
            await cluster.train(config)


def no_data(device: str) -> list[int]:
    return []
