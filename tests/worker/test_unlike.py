"""Machines that compute other bits: told apart by a probe, refused unless the job tolerates them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import structlog
import torch

from broker.protocol import messages as m
from server_worker.engine import probe
from server_worker.engine.probe import alike, environment_of
from server_worker.store import Owner
from spliteasy.job import Job
from tests.simulation import toy
from tests.store.steps import rewrite
from tests.worker.conftest import ATTEMPT, SESSION, Device, Server
from tests.worker.test_refusals import forward

TOLERANT = toy.Variant(exactness="tolerance")
ELSEWHERE = f"torch 2, AVX512, 2 threads, probe {'e' * 32}"


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> toy.Variant:
    """As the test's parameter says."""
    return getattr(request, "param", toy.Variant())


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is known of any job, before and after."""
    probe._known.clear()
    yield
    probe._known.clear()


async def step(device: Device, number: int, attempt: m.AttemptRef = ATTEMPT) -> m.AnyMessage:
    request = forward(number, attempt=attempt)
    forwarded = await device.ask(request)
    if not isinstance(forwarded, m.Forwarded):
        return forwarded
    (output,) = forwarded.values
    assert isinstance(output, torch.Tensor)
    backward = m.Backward(
        session=SESSION, attempt=attempt, step=number, forward=request.request, values=(output * 0,)
    )
    return await device.ask(backward)


async def moved(server: Server, variant: toy.Variant, device: Device, environment: str) -> None:
    """A step was taken on another machine, and its worker has left."""
    await device.open(variant)
    assert isinstance(await step(device, 1), m.Gradient)
    await server.worker.actors.park([SESSION])
    await rewrite(server.store, SESSION, environment=environment, owner=Owner(fence=1, nonce="0" * 16))


async def test_the_record_says_what_the_probe_gave(server: Server) -> None:
    async with server.device() as device:
        await device.open()
    meta = await server.store.session(SESSION)
    assert meta is not None
    assert meta.environment == environment_of(toy.job(toy.Variant()))
    assert re.search(r"torch .*, probe [0-9a-f]{32}$", meta.environment)


async def test_a_claim_by_an_unlike_worker_is_refused_and_takes_nothing(server: Server) -> None:
    async with server.device() as device:
        await moved(server, toy.Variant(), device, ELSEWHERE)
        before = await server.store.session(SESSION)
        again = m.AttemptRef(number=2, nonce="b" * 16)
        opened = m.Open(session=SESSION, attempt=again, digest=toy.job(toy.Variant()).digest, held=(0, 1))
        for request in (forward(2), opened):
            answer = await device.ask(request)
            assert isinstance(answer, m.Error)
            assert (answer.code, answer.retriable) == ("unavailable", True)
            assert ELSEWHERE in answer.message
            assert environment_of(toy.job(toy.Variant())) in answer.message
            assert "tolerance" in (answer.hint or "")
        assert await server.store.session(SESSION) == before
        anew = opened.model_copy(update={"restart": True, "request": m.new_nonce()})
        assert isinstance(await device.ask(anew), m.Opened)


@pytest.mark.parametrize("variant", [TOLERANT], indirect=True)
async def test_a_job_that_tolerates_it_goes_on_and_it_is_told(server: Server) -> None:
    async with server.device() as device:
        await moved(server, TOLERANT, device, ELSEWHERE)
        with structlog.testing.capture_logs() as logs:
            assert isinstance(await step(device, 2), m.Gradient)
    told = [entry for entry in logs if entry["event"] == "the session goes on with other bits"]
    assert [entry["computed_on"] for entry in told] == [ELSEWHERE]


async def test_what_an_earlier_version_opened_goes_on(server: Server) -> None:
    async with server.device() as device:
        await moved(server, toy.Variant(), device, "torch 2, AVX512, 2 threads")
        assert isinstance(await step(device, 2), m.Gradient)


def test_other_kernels_give_another_probe(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    job: Job = toy.job(toy.Variant(batch=7, micro_batches=2))
    here = environment_of(job)
    probe._known.clear()
    assert environment_of(job) == here, "the same machine gives the same"
    probe._known.clear()
    backward = probe.SegmentTrainer.backward

    def rounded(self: probe.SegmentTrainer, *args: object) -> object:
        return tuple(
            None if each is None else each * (1 + 1e-6)
            for each in backward(self, *args)  # type: ignore[arg-type]
        )

    monkeypatch.setattr(probe.SegmentTrainer, "backward", rounded)
    assert not alike(here, environment_of(job))
