"""A worker that computes other bits than the one before it does not go on."""

from __future__ import annotations

import pytest

from broker.protocol import messages as m
from server_worker.engine import local
from tests.simulation import toy
from tests.worker.conftest import JOB, SESSION, Server
from tests.worker.test_metrics import one_step

OTHER = "0" * 32


async def test_a_step_that_replays_to_other_bits_is_refused_with_both_digests(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_step(server)
    again = m.AttemptRef(number=2, nonce="b" * 16)
    monkeypatch.setattr(local, "digest_of", lambda _values: OTHER)  # as other hardware would give
    async with server.device() as device:
        answer = await device.ask(
            m.Open(session=SESSION, attempt=again, digest=toy.job(JOB).digest, held=(0, 1))
        )
    assert isinstance(answer, m.Error)
    assert answer.code == "replay-mismatch"
    assert not answer.retriable
    entry = await anext(server.store.read_log(SESSION, after=0, upto=1))
    assert OTHER in answer.message
    assert entry.gradient_digest in answer.message
