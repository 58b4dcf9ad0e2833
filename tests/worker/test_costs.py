"""The cost of a request is bounded by the job, counted before it is computed, and shared out fairly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from broker.protocol import messages as m
from server_worker.admission.budget import Budget
from server_worker.replica.direct_body import DirectBody
from server_worker.session.refusals import NO_MEMORY
from spliteasy.codecs.packer import FEEDBACK_PREFIX, bytes_of
from spliteasy.graph.program import Costs
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, SESSION, Device, Server
from tests.worker.test_refusals import forward

FEEDBACK = toy.Variant(activations="topk:0.5", gradients="topk:0.3")


async def refused(device: Device, request: m.Request) -> str:
    answer = await device.ask(request)
    assert isinstance(answer, m.Error), answer
    assert (answer.code, answer.retriable) == ("bad-tensor", False)
    return answer.message


async def test_no_request_claims_more_samples_than_the_job_has(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        for samples in (5, 4000, 1 << 20):
            few = (torch.ones(min(samples, 4000), 5),)
            assert "batch_size is 4" in await refused(device, forward(samples=samples, values=few))
            assert "batch_size is 4" in await refused(device, forward(batch=samples))
        for samples in (257, 1 << 20):
            few = (torch.ones(min(samples, 257), 5),)
            evaluation = m.Eval(session=SESSION, attempt=ATTEMPT, step=0, samples=samples, values=few)
            assert "evaluation.batch_size is 256" in await refused(device, evaluation)
        whole = m.Eval(session=SESSION, attempt=ATTEMPT, step=0, samples=256, values=(torch.ones(256, 5),))
        assert isinstance(await device.ask(whole), m.Evaluated)
        assert server.store.waiting_bytes == 0, "what was refused was not stored"
        assert server.worker.actors.budget.open_bytes == 0


async def test_a_request_with_more_bytes_than_its_values_need_is_refused_before_it_is_stored(
    server: Server,
) -> None:
    async with server.device() as device:
        await device.open()
        said = await refused(device, forward(values=(torch.ones(4, 5), torch.ones(1 << 19))))
        assert "where the job's are of" in said
        assert server.store.waiting_bytes == 0


async def test_targets_are_those_that_the_job_has() -> None:
    single = toy.job(toy.Variant(single=True))
    memory = DirectBody(single, SESSION).loaded
    right = torch.zeros(4, dtype=torch.int64)
    body_in = torch.ones(4, 5)
    memory.check(forward(values=(body_in, right), targets=1), 0)
    for wrong in ((right[:3],), (right.float(),), (right.repeat(1000),), (right, right)):
        with pytest.raises(Exception, match="target"):
            memory.check(forward(values=(body_in, *wrong), targets=len(wrong)), 0)


async def test_an_open_step_counts_until_it_is_over(server: Server) -> None:
    async with server.device() as device:
        await device.open()
        first = forward()
        answer = await device.ask(first)
        assert isinstance(answer, m.Forwarded)
        session = server.worker.actors[SESSION].session
        memory = session.replica.body
        assert memory is not None
        assert memory.step_bytes == toy.job(JOB).body.program.costs.train_bytes > 4 * 5 * 4
        assert server.worker.actors.budget.open_bytes == memory.step_bytes
        assert session.memory_bytes() == memory.state_bytes + memory.step_bytes
        assert isinstance(await device.ask(forward()), m.Forwarded), "computed again: it counts once"
        assert server.worker.actors.budget.open_bytes == memory.step_bytes
        await refused(device, forward(samples=3))
        assert server.worker.actors.budget.open_bytes == 0


def test_a_step_with_shared_labels_counts_the_loss_that_the_worker_computes() -> None:
    memory = DirectBody(toy.job(toy.Variant(single=True)), SESSION).loaded
    body = memory.step_bytes
    memory.job = replace(memory.job, loss_costs=Costs(train_bytes=1000))
    assert memory.step_bytes == body + 1000
    alone = DirectBody(toy.job(JOB), SESSION).loaded
    assert alone.step_bytes == toy.job(JOB).body.program.costs.train_bytes


def test_what_error_feedback_may_hold_back_counts_from_the_start() -> None:
    """It is as much as the job's batches can fill, whatever sizes a device sends."""
    plain, held = (DirectBody(toy.job(variant), SESSION) for variant in (toy.Variant(), FEEDBACK))
    more = held.loaded.state_bytes - plain.loaded.state_bytes
    assert more == 3 * 4 * 4 * (5 + 5), "both ways, two sizes of batch and the open step"
    for step, samples in enumerate((4, 3, 2, 4, 3, 2), start=1):
        request = forward(step, samples=samples, values=(torch.randn(samples, 5),))
        held.forward(request)
        gradient = torch.randn(samples, 5)
        held.backward(
            m.Backward(
                session=SESSION, attempt=ATTEMPT, step=step, forward=request.request, values=(gradient,)
            )
        )
    state = held.snapshot()
    kept = [tensor for name, tensor in state.items() if name.startswith(FEEDBACK_PREFIX)]
    assert 0 < bytes_of(kept) <= more


async def test_a_step_waits_while_others_take_the_memory(server: Server) -> None:
    budget = server.worker.actors.budget
    budget.limit_bytes = toy.job(JOB).body.program.costs.train_bytes
    async with server.device() as one, server.device("phone-2") as two:
        await one.open()
        session, digest = "toy.phone-2", toy.job(JOB).digest
        await two.ask(m.Open(session=session, attempt=ATTEMPT, digest=digest, held=(0,)))
        opened = forward()
        forwarded = await one.ask(opened)
        assert isinstance(forwarded, m.Forwarded)
        (output,) = forwarded.values
        assert isinstance(output, torch.Tensor)
        busy = await two.ask(forward(session=session))
        assert isinstance(busy, m.Busy)
        assert busy.reason == NO_MEMORY
        backward = m.Backward(
            session=SESSION, attempt=ATTEMPT, step=1, forward=opened.request, values=(output * 0,)
        )
        assert isinstance(await one.ask(backward), m.Gradient)
        assert isinstance(await two.ask(forward(session=session)), m.Forwarded)


def test_what_one_step_needs_is_there_however_large_where_nothing_else_is_open() -> None:
    budget = Budget(100)
    budget.states_bytes = 90
    assert budget.take(1000)
    assert not budget.take(10)
    assert budget.wanted_bytes == 10
    budget.give_back(1000)
    assert budget.take(10)
    assert budget.open_bytes == 10
