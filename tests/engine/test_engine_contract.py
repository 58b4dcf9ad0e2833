"""What every engine promises (`server_worker/engine/base.py`), tried on each that there is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from server_worker.engine.base import (
    Abort,
    Backward,
    BackwardDone,
    Body,
    Engine,
    Evaluate,
    Forward,
    ForwardDone,
    LoadProgram,
    OpenBody,
    Probe,
    ReadWeights,
    Restore,
    Step,
    StepDone,
    TakeSnapshot,
    together,
)
from server_worker.engine.local import LocalEngine
from server_worker.engine.probe import alike
from spliteasy.codecs.packer import Packed
from spliteasy.errors import DataError, OutputsMismatch
from spliteasy.job import Job
from spliteasy.runtime.accelerator import on_host, processors, settle
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy.training.segment_trainer import NotFinite, SegmentTrainer
from tests.engine import standin
from tests.simulation import toy

T = TypeVar("T")
PLAIN = toy.Variant()
assert standin.DEVICE in processors()


async def _inline(run: Callable[[], T]) -> T:
    return run()


@contextmanager
def _local_in_a_thread() -> Iterator[Engine]:
    thread = TorchThread()
    try:
        yield LocalEngine(thread)
    finally:
        thread.close()


@contextmanager
def _local_inline() -> Iterator[Engine]:
    yield LocalEngine(_inline)


@contextmanager
def _local_on(processor: torch.device) -> Iterator[Engine]:
    """The bodies of this engine lie on an accelerator, and several threads feed it."""
    thread, deterministic = TorchThread(threads=3), torch.are_deterministic_algorithms_enabled()
    settle(processor)
    try:
        yield LocalEngine(thread, processor)
    finally:
        torch.use_deterministic_algorithms(deterministic)
        thread.close()


ENGINES = {
    "thread": _local_in_a_thread,
    "inline": _local_inline,
    **{str(processor): partial(_local_on, processor) for processor in processors()[1:]},
}
"""An engine for each processor that torch finds, the stand-in among them, beside those of the CPU."""


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    with ENGINES[request.param]() as made:
        yield made


def values(step: int, samples: int = 4, micro: int = 0) -> Packed:
    """Activations of the toy's body; other ones at each step and micro-batch."""
    generator = torch.Generator().manual_seed(100 * step + micro)
    return Packed((torch.randn(samples, 5, generator=generator),))


def forward_of(body: Body, step: int, **fields: object) -> Forward:
    asked = {"body": body, "micro": 0, "samples": 4, "batch": 4, "values": values(step), **fields}
    return Forward(**asked)  # type: ignore[arg-type]


async def opened(engine: Engine, variant: toy.Variant = PLAIN, device: str = "phone-1") -> Body:
    return await engine.perform(OpenBody(toy.job(variant), f"toy.{device}", device))


def backward_of(body: Body, step: int, forwarded: ForwardDone, factor: float = 0.5) -> Backward:
    (output,) = forwarded.outputs.values
    assert isinstance(output, Tensor)
    return Backward(body=body, step=step, gradients=Packed((output * factor,)))


async def take(engine: Engine, body: Body, step: int) -> StepDone:
    forwarded = await engine.perform(forward_of(body, step))
    await engine.perform(backward_of(body, step, forwarded))
    return await engine.perform(Step(body))


def plain_trainer(engine: Engine, job: Job) -> SegmentTrainer:
    """A trainer of the body without an engine, on the engine's processor."""
    assert isinstance(engine, LocalEngine)
    body = job.body.spawn().on(engine.processor)
    return SegmentTrainer(body, job.spec, device="phone-1", role="body")


async def weights(engine: Engine, body: Body) -> dict[str, Tensor]:
    return await engine.perform(ReadWeights(body))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


async def test_a_step_is_the_plain_trainers(engine: Engine) -> None:
    job = toy.job(PLAIN)
    plain = plain_trainer(engine, job)
    body = await opened(engine)
    for step in range(1, 4):
        (activation,) = values(step).values
        assert isinstance(activation, Tensor)
        graph = plain.forward([activation.to(plain.segment.processor)])
        (output,) = graph.outputs
        assert isinstance(output, Tensor)
        forwarded = await engine.perform(forward_of(body, step))
        assert forwarded.output_bytes == output.nbytes
        assert torch.equal(forwarded.outputs.values[0], output.detach().cpu())  # type: ignore[arg-type]
        returned = await engine.perform(backward_of(body, step, forwarded))
        (gradient,) = plain.backward(graph, [output.detach() * 0.5])
        assert gradient is not None
        assert torch.equal(returned.gradients.values[0], gradient.cpu())  # type: ignore[arg-type]
        assert returned.loss is None
        plain.apply()
        assert not (await engine.perform(Step(body))).skipped
    assert same(await weights(engine, body), on_host(plain.segment.state_dict()))


async def test_requests_together_are_those_one_by_one(engine: Engine) -> None:
    apart, joined = await opened(engine), await opened(engine)
    for step in (1, 2):
        forwarded = await engine.perform(forward_of(joined, step))
        returned, done = await engine.perform(together(backward_of(joined, step, forwarded), Step(joined)))
        assert isinstance(returned, BackwardDone)
        assert done == await take(engine, apart, step)


async def test_micro_batches_add_up_in_order(engine: Engine) -> None:
    variant = toy.Variant(batch=8, micro_batches=3)
    ahead, in_turn = await opened(engine, variant), await opened(engine, variant)
    sizes = (3, 3, 2)

    def asked(body: Body, micro: int) -> Forward:
        samples = sizes[micro]
        return forward_of(body, 1, micro=micro, samples=samples, batch=8, values=values(1, samples, micro))

    forwards = [await engine.perform(asked(ahead, micro)) for micro in range(3)]
    for forwarded in forwards:
        await engine.perform(backward_of(ahead, 1, forwarded))
    done = await engine.perform(Step(ahead))
    returned = []
    for micro in range(3):
        forwarded = await engine.perform(asked(in_turn, micro))
        returned.append(await engine.perform(backward_of(in_turn, 1, forwarded)))
    assert [tuple(each.gradients.values[0].shape) for each in returned] == [(3, 5), (3, 5), (2, 5)]  # type: ignore[union-attr]
    assert await engine.perform(Step(in_turn)) == done


async def test_the_loss_is_computed_where_labels_are_shared(engine: Engine) -> None:
    variant = toy.Variant(single=True)
    job = toy.job(variant)
    plain = plain_trainer(engine, job)
    body = await opened(engine, variant)
    targets = torch.tensor([0, 1, 2, 0])
    asked = forward_of(body, 1, targets=(targets,))
    forwarded, returned, done = await engine.perform(
        together(asked, Backward(body=body, step=1, gradients=None), Step(body))
    )
    assert forwarded.outputs.values == (), "nothing goes back before the gradients"
    assert forwarded.share == 1
    graph = plain.forward([v.to(plain.segment.processor) for v in values(1).values if isinstance(v, Tensor)])
    loss = job.loss(tuple(v.cpu() for v in graph.outputs if isinstance(v, Tensor)), (targets,))
    loss.backward()
    plain.apply()
    assert returned.loss == float(loss.detach())
    assert not done.skipped
    assert same(await weights(engine, body), on_host(plain.segment.state_dict()))


async def test_a_micro_batch_counts_for_no_more_than_its_batch(engine: Engine) -> None:
    body = await opened(engine, toy.Variant(single=True))
    asked = forward_of(body, 1, targets=(torch.tensor([0, 1, 2, 0]),), counted=3.0)
    with pytest.raises(DataError, match="counts for"):
        await engine.perform(asked)


@pytest.mark.parametrize("variant", [PLAIN, toy.Variant(activations="topk:0.5", gradients="topk:0.3")])
async def test_a_body_that_is_restored_goes_on_with_the_same_bits(
    engine: Engine, variant: toy.Variant
) -> None:
    def asked(body: Body, step: int) -> Forward:
        return forward_of(body, step, values=Packed(values(step).values))

    async def step_of(body: Body, step: int) -> StepDone:
        await engine.perform(asked(body, step))
        gradients = Packed((torch.full((4, 5), 0.25 * step),))
        backward = Backward(body=body, step=step, gradients=gradients)
        return (await engine.perform(together(backward, Step(body))))[1]

    first, second = await opened(engine, variant), await opened(engine, variant)
    for step in (1, 2):
        await step_of(first, step)
    await engine.perform(asked(first, 3))  # an open step is not in a snapshot
    await engine.perform(Restore(second, await engine.perform(TakeSnapshot(first)), 2))
    assert [await step_of(second, step) for step in (3, 4)] == [await step_of(first, step) for step in (3, 4)]
    with pytest.raises(ValueError, match="step"):
        await engine.perform(Restore(second, await engine.perform(TakeSnapshot(first)), 7))


async def test_an_empty_snapshot_is_the_initial_state(engine: Engine) -> None:
    body, untouched = await opened(engine), await opened(engine)
    await engine.perform(Restore(body, {}, 0))
    assert same(await weights(engine, body), await weights(engine, untouched))


async def test_a_step_that_is_given_up_leaves_nothing(engine: Engine) -> None:
    body, untouched = await opened(engine), await opened(engine)
    forwarded = await engine.perform(forward_of(body, 9))
    await engine.perform(backward_of(body, 1, forwarded))
    await engine.perform(Abort(body))
    assert same(await weights(engine, body), await weights(engine, untouched))
    await engine.perform(forward_of(body, 9))  # given up by a first forward again
    assert await take(engine, body, 1) == await take(engine, untouched, 1)


async def test_a_request_that_fails_can_be_put_right(engine: Engine) -> None:
    body, untouched = await opened(engine), await opened(engine)
    with pytest.raises(DataError):
        await engine.perform(forward_of(body, 1, values=Packed((torch.ones(4, 6),))))
    forwarded = await engine.perform(forward_of(body, 1))
    with pytest.raises(DataError):
        await engine.perform(Backward(body=body, step=1, gradients=Packed((torch.ones(1, 1),))))
    other = Backward(body=body, step=1, gradients=forwarded.outputs, outputs="0" * 32)
    with pytest.raises(OutputsMismatch):
        await engine.perform(other)
    await engine.perform(Abort(body))
    assert await take(engine, body, 1) == await take(engine, untouched, 1)


async def test_what_follows_a_failure_is_not_begun(engine: Engine) -> None:
    body, untouched = await opened(engine), await opened(engine)
    forwarded = await engine.perform(forward_of(body, 1))
    with pytest.raises(NotFinite):
        await engine.perform(together(backward_of(body, 1, forwarded, float("nan")), Step(body)))
    await engine.perform(Abort(body))
    assert same(await weights(engine, body), await weights(engine, untouched))
    assert await take(engine, body, 1) == await take(engine, untouched, 1)


async def test_a_step_that_is_not_finite_passes_where_the_job_lets_it(engine: Engine) -> None:
    body = await opened(engine, toy.Variant(on_non_finite="skip"))
    before = await weights(engine, body)
    forwarded = await engine.perform(forward_of(body, 1))
    returned, done = await engine.perform(together(backward_of(body, 1, forwarded, float("inf")), Step(body)))
    assert returned.gradients.values == (None,)
    assert done.skipped
    assert same(await weights(engine, body), before)
    assert not (await take(engine, body, 2)).skipped


async def test_an_evaluation_moves_nothing(engine: Engine) -> None:
    body, untouched = await opened(engine), await opened(engine)
    await take(engine, body, 1)
    await take(engine, untouched, 1)
    between = await engine.perform(Evaluate(body, 3, values(5, 3)))
    forwarded = await engine.perform(forward_of(body, 2))
    within = await engine.perform(Evaluate(body, 3, values(5, 3)))
    assert torch.equal(between.values[0], within.values[0])  # type: ignore[arg-type]
    await engine.perform(backward_of(body, 2, forwarded))
    assert await engine.perform(Step(body)) == await take(engine, untouched, 2)
    with pytest.raises(DataError):
        await engine.perform(Evaluate(body, 3, Packed((torch.ones(3, 6),))))


async def test_bodies_know_nothing_of_each_other(engine: Engine) -> None:
    names = ("phone-1", "phone-2", "phone-3")
    alone = {}
    for name in names:
        body = await opened(engine, device=name)
        alone[name] = [await take(engine, body, step) for step in (1, 2, 3)]

    async def train(name: str) -> list[StepDone]:
        body = await opened(engine, device=name)
        return [await take(engine, body, step) for step in (1, 2, 3)]

    at_once = await asyncio.gather(*map(train, names))
    assert dict(zip(names, at_once, strict=True)) == alone
    assert len({steps[0].digest for steps in at_once}) == len(names), "dropout is each device's own"


async def test_an_engine_says_what_decides_its_bits(engine: Engine) -> None:
    job = toy.job(PLAIN)
    line = await engine.perform(Probe(job))
    assert alike(line, await engine.perform(Probe(job)))
    assert "\n" not in line
    other = line[:-1] + ("0" if line[-1] != "0" else "1")
    assert not alike(line, other)


async def test_a_program_is_that_of_the_package(engine: Engine) -> None:
    job = toy.job(PLAIN)
    loaded = await engine.perform(LoadProgram(job.manifest, job.parts))
    assert isinstance(loaded, Job)
    assert loaded.digest == job.digest


async def test_a_body_tells_what_it_takes(engine: Engine) -> None:
    body = await opened(engine)
    assert body.replica == "toy.phone-1"
    assert body.state_bytes >= sum(tensor.nbytes for tensor in (await weights(engine, body)).values())
