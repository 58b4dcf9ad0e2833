"""The metrics of a worker, over the in-process broker; and that nothing it counts is a device's to invent."""

from __future__ import annotations

import time

import pytest
import torch

from broker.protocol import messages as m
from broker.protocol.labels import codec_label
from server_worker import gauges as gauges_module
from server_worker import metrics
from server_worker.store import Attempt, Owner, SqliteStore
from spliteasy.errors import StoreError
from spliteasy.observability.prometheus import PrometheusMeter
from spliteasy.runtime.torch_thread import TorchThread
from tests.recorded import Recorded
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, SESSION, Server
from tests.worker.test_refusals import forward as a_forward


async def one_step(server: Server) -> tuple[m.Forward, m.Backward]:
    """A session's first step; returns what the device had sent."""
    async with server.device() as device:
        assert isinstance(await device.open(), m.Opened)
        forward = a_forward()
        forwarded = await device.ask(forward)
        assert isinstance(forwarded, m.Forwarded)
        gradients = tuple(torch.ones_like(v) for v in forwarded.values if isinstance(v, torch.Tensor))
        backward = m.Backward(
            session=SESSION, attempt=ATTEMPT, step=1, forward=forward.request, values=gradients
        )
        assert isinstance(await device.ask(backward), m.Gradient)
        return forward, backward


async def test_a_step_is_counted_once_with_its_bytes_and_its_time(server: Server) -> None:
    meter = server.worker.meter = Recorded()
    forward, backward = await one_step(server)
    assert meter.get(metrics.STEPS, "toy") == 1
    assert meter.get(metrics.TAKEOVERS) == 1
    assert meter.get(metrics.REPLAYED) == 0
    for kind in ("OPEN", "FORWARD"):  # the last one is counted once its reply has left
        assert meter.get(metrics.REQUEST_SECONDS, kind) == 1
    assert meter.get(metrics.QUEUE_SECONDS) == 3
    tensors = [value for value in (*forward.values, *backward.values) if isinstance(value, torch.Tensor)]
    assert meter.get(metrics.BYTES, "received", "fp32") > sum(tensor.nbytes for tensor in tensors) > 0
    assert meter.get(metrics.BYTES, "sent", "fp32") > 0
    assert meter.get(metrics.BYTES, "sent", "none") > 0, "OPENED carries no values"


async def test_gauges_say_what_is_held(server: Server) -> None:
    meter = server.worker.meter = Recorded()
    await one_step(server)
    await gauges_module.measure(server.worker, meter)
    assert meter.get(metrics.SESSIONS) == 1
    assert meter.get(metrics.SESSION_BYTES) > 0
    assert meter.get(metrics.JOBS) == 1
    assert meter.get(metrics.SNAPSHOTS) == 1
    assert meter.get(metrics.LOG_BYTES) > 0
    assert 0 < meter.get(metrics.LOG_FILL) < 1
    assert meter.get(metrics.UPLOADS) == meter.get(metrics.DEAD_WAITING) == 0
    limit = server.worker.config.memory_bytes
    assert meter.get(metrics.SESSION_LIMIT) == limit > meter.get(metrics.SESSION_BYTES)
    gauges = {metric.name for metric in metrics.ALL if metric.kind == "gauge"}
    assert gauges <= {name for name, *_ in meter.values}


async def test_what_is_refused_is_counted_as_a_dead_letter_and_lies_in_its_queue(server: Server) -> None:
    meter = server.worker.meter = Recorded()
    async with server.device("phone-1") as device:
        await device.send(m.GetJob(session="toy.phone-2"))
        await device.ask(m.GetJob(session=SESSION))
    assert meter.get(metrics.DEAD_LETTERS, "refused") == 1
    await gauges_module.measure(server.worker, meter)
    assert meter.get(metrics.DEAD_WAITING) == 1


async def test_an_error_is_counted_by_its_code_and_poison_as_a_dead_letter(server: Server) -> None:
    meter = server.worker.meter = Recorded()
    async with server.device() as device:
        assert isinstance(await device.open(), m.Opened)
        answer = await device.ask(a_forward(values=(torch.ones(4, 6),)))
        assert isinstance(answer, m.Error)
        assert await server.dead_letter() != ""
    assert meter.get(metrics.ERRORS, answer.code) == 1
    assert meter.get(metrics.DEAD_LETTERS, "poison") == 1


async def test_readiness_names_what_is_away(server: Server) -> None:
    assert await gauges_module.why_not_ready(server.worker) is None
    server.worker.connected.clear()
    assert await gauges_module.why_not_ready(server.worker) == "not connected to the broker"
    server.worker.connected.set()
    await server.store.close()
    with pytest.raises(StoreError):
        await server.store.workers()
    assert await gauges_module.why_not_ready(server.worker) == "the store does not answer"


async def test_the_store_is_timed_and_a_refused_commit_counted_by_its_kind() -> None:
    store, meter = SqliteStore(None, inline=True), Recorded()
    metered = metrics.metered_store(store, meter, time.monotonic)
    attempt, owner = Attempt(number=1, nonce="a" * 16), Owner(fence=1, nonce="w")
    try:
        assert metered.loss_window_s == store.loss_window_s
        await metered.open_session(
            "toy.phone-1", job_digest="d", attempt=attempt, held=(0,), worker="w", environment="e"
        )
        outcome = await metered.commit(
            "toy.phone-1", attempt=attempt, owner=owner, step=7, requests=0, gradient_digest="g",
            oldest_checkpoint=0,
        )  # fmt: skip
        assert type(outcome).__name__ == "StepBehind"
        with pytest.raises(KeyError):
            await metered.read_snapshot("toy.phone-1", 5)
    finally:
        await store.close()
    assert meter.get(metrics.REFUSED_COMMITS, "StepBehind") == 1
    assert meter.get(metrics.STORE_CALLS, "open_session", "Done") == 1
    assert meter.get(metrics.STORE_CALLS, "read_snapshot", "KeyError") == 1
    assert meter.get(metrics.STORE_SECONDS, "commit") == 1


async def test_a_load_from_the_store_counts_what_it_computes_again(server: Server) -> None:
    await one_step(server)
    meter = server.worker.meter = Recorded()
    async with server.device() as device:
        again = m.AttemptRef(number=2, nonce="b" * 16)
        opened = await device.ask(
            m.Open(session=SESSION, attempt=again, digest=toy.job(JOB).digest, held=(0, 1))
        )
        assert isinstance(opened, m.Opened)
        assert isinstance(await device.ask(m.Close(session=SESSION, attempt=again, step=1)), m.Closed)
    assert meter.get(metrics.TAKEOVERS) == 1
    assert meter.get(metrics.REPLAYED) == 1


@pytest.mark.parametrize(
    ("codec", "label"),
    [("fp32", "fp32"), ("topk:0.01", "topk"), ("invented-17", "other"), ("other", "other"), ("", "other")],
)
def test_a_device_cannot_make_labels_up(codec: str, label: str) -> None:
    reply = m.Evaluated.model_construct(codec=codec)
    assert codec_label(reply) == label


def test_every_metric_is_exported_from_the_start_under_its_name() -> None:
    text = PrometheusMeter(metrics.ALL).render().decode()
    for metric in metrics.ALL:
        assert f"# TYPE {metric.name} {metric.kind}\n" in text
    assert "process_resident_memory_bytes" in text
    assert len({metric.name for metric in metrics.ALL}) == len(metrics.ALL)


async def test_the_torch_thread_is_timed_whether_it_succeeds_or_not() -> None:
    meter, thread = Recorded(), TorchThread()
    moments = iter((10.0, 11.0, 12.5, 20.0, 20.0, 21.0))
    metered = metrics.MeteredCompute(thread, meter, lambda: next(moments))
    try:
        assert await metered(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await metered(lambda: 1 // 0)
    finally:
        thread.close()
    assert meter.get(metrics.COMPUTE_SECONDS) == meter.get(metrics.COMPUTE_WAIT_SECONDS) == 2
