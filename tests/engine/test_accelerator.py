"""A worker on an accelerator: where bodies lie, whose bits they have, and what fails. The accelerator is a
stand-in of torch's own; `test_engine_contract.py` runs on it and on each that torch finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from server_worker.engine import probe
from server_worker.engine.base import Backward, LoadProgram, OpenBody, Probe, Step, TakeSnapshot, together
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.engine.local import LocalEngine, perform_now
from server_worker.engine.probe import alike
from spliteasy.codecs.packer import Packed
from spliteasy.errors import OutOfMemory, UserError
from spliteasy.runtime import accelerator
from spliteasy.runtime.accelerator import CPU, is_lost, on_host, processor_named, processors, settle
from spliteasy.runtime.randomness import Key, drawing_on
from spliteasy.runtime.torch_thread import TorchThread
from spliteasy.training.digest import digest_of, strong_digest
from spliteasy.training.segment_trainer import SegmentTrainer, all_finite
from tests.engine import standin
from tests.engine.standin import DEVICE, MODULE
from tests.engine.test_engine_contract import PLAIN, backward_of, forward_of, values
from tests.simulation import toy

ADAM = (("name", "adam"), ("lr", 0.01))


def taken(body: BodyTrainer, step: int, processor: torch.device) -> str:
    """A step of a body, and its digest."""
    forwarded = perform_now(forward_of(body, step), processor)
    assert forwarded.output_bytes == 4 * 5 * 4
    gradients = Packed((torch.full((4, 5), 0.25 * step),))
    requests = together(Backward(body=body, step=step, gradients=gradients), Step(body))
    return perform_now(requests, processor)[1].digest


def opened(variant: toy.Variant = PLAIN, processor: torch.device = DEVICE) -> BodyTrainer:
    body = perform_now(OpenBody(toy.job(variant), "toy.phone-1", "phone-1"), processor)
    assert isinstance(body, BodyTrainer)
    return body


def test_all_of_a_body_lies_on_the_accelerator_and_what_leaves_it_on_the_host() -> None:
    body = opened(toy.Variant(optimizer=ADAM))
    draws = MODULE.draws
    for step in (1, 2):
        taken(body, step, DEVICE)
    assert MODULE.draws > draws, "dropout draws from the accelerator's generator"
    state = body.trainer.state()
    lying = {name: tensor.device for name, tensor in state.items() if not name.endswith("/step")}
    assert set(lying.values()) == {DEVICE}
    assert any(name.startswith("optimizer/") for name in lying)
    forwarded = perform_now(forward_of(body, 3), DEVICE)
    returned = perform_now(backward_of(body, 3, forwarded), DEVICE)
    for value in (*forwarded.outputs.values, *returned.gradients.values, *body.weights().values()):
        assert isinstance(value, Tensor)
        assert value.device == CPU


@pytest.mark.parametrize(
    "variant",
    [
        PLAIN,
        toy.Variant(optimizer=ADAM, accumulate=2),
        toy.Variant(activations="topk:0.5", gradients="topk:0.3"),
    ],
    ids=["plain", "adam", "feedback"],
)
def test_a_body_moves_between_processors_and_goes_on(variant: toy.Variant) -> None:
    """The stand-in has the CPU's bits, so that all of the state has to come along."""
    here, there = opened(variant, CPU), opened(variant, DEVICE)
    for step in (1, 2, 3):
        assert taken(here, step, CPU) == taken(there, step, DEVICE)
    moved, back = opened(variant, DEVICE), opened(variant, CPU)
    moved.restore(perform_now(TakeSnapshot(here)), 3)
    back.restore(perform_now(TakeSnapshot(there), DEVICE), 3)
    digests = {taken(body, 4, body.processor) for body in (here, there, moved, back)}
    assert len(digests) == 1


def test_frozen_tensors_are_shared_on_the_accelerator() -> None:
    from tests.engine.test_frozen import BASE, package, storages

    job = package(0.1, *BASE)
    loaded = perform_now(LoadProgram(job.manifest, job.parts), DEVICE)
    bodies = [perform_now(OpenBody(loaded, f"frozen.{name}", name), DEVICE) for name in ("a", "b")]
    found = [storages(body.trainer.segment, ".base.") for body in bodies]  # type: ignore[attr-defined]
    assert found[0]
    assert found[0] == found[1]
    on_cpu = perform_now(LoadProgram(job.manifest, job.parts))
    assert {each.tensor.device for each in on_cpu.body.frozen.values()} == {CPU}
    assert {each.tensor.device for each in loaded.body.frozen.values()} == {DEVICE}


def test_digests_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = [
        torch.randn(5000, generator=generator),
        torch.randn(70, 50, generator=generator).t(),
        torch.randn(4097, generator=generator)[1:],
        torch.arange(3, dtype=torch.uint8),
        torch.zeros(0),
        torch.tensor(True),
    ]
    there = [tensor.to(DEVICE) for tensor in tensors]
    assert digest_of([*tensors, 7, None]) == digest_of([*there, 7, None])
    for one, other in zip(tensors, there, strict=True):
        assert strong_digest(one) == strong_digest(other)
    back = on_host({str(place): tensor for place, tensor in enumerate(there)})
    for one, other in zip(tensors, back.values(), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def test_numbers_that_are_not_finite_are_found_on_the_accelerator() -> None:
    fine, large = torch.ones(4).to(DEVICE), torch.full((3,), 3e38).to(DEVICE)
    assert all_finite([fine, large]), "a sum that overflows says nothing of its parts"
    assert not all_finite([fine, torch.tensor([1.0, float("nan")]).to(DEVICE)])


def test_the_generators_are_what_they_were_and_a_key_stays_on_the_cpu() -> None:
    before = (torch.random.get_rng_state(), MODULE.get_rng_state())
    with drawing_on(DEVICE, 5):
        first = torch.rand(4, device=DEVICE).cpu()
    with drawing_on(DEVICE, 5):
        assert torch.equal(first, torch.rand(4, device=DEVICE).cpu())
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert torch.equal(before[1], MODULE.get_rng_state())
    with pytest.raises(ValueError, match="CPU alone"), drawing_on(DEVICE, Key(bytes(32))):
        pass


def test_the_environment_names_the_accelerator() -> None:
    job = toy.job(PLAIN)
    here, there = perform_now(Probe(job)), perform_now(Probe(job), DEVICE)
    assert f", on {standin.NAME} accelerator (driver unknown), probe " in there
    assert here.rpartition(" ")[2] == there.rpartition(" ")[2], "the stand-in has the CPU's bits"
    assert not alike(here, there), "and is no CPU all the same"
    assert not alike(here.partition(", probe")[0], there)
    assert alike(there, there.replace("driver unknown", "driver 2"))
    assert not alike(there, there.replace("accelerator", "accelerator capability 9.0"))


def test_no_memory_is_told_as_on_the_host() -> None:
    async def refused() -> None:
        thread = TorchThread()
        engine = LocalEngine(thread, DEVICE, lost=lambda error: pytest.fail(f"it is not lost: {error}"))
        try:
            body = await engine.perform(OpenBody(toy.job(PLAIN), "toy.phone-1", "phone-1"))
            MODULE.fails_with = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            with pytest.raises(OutOfMemory, match="out of memory"):
                await engine.perform(forward_of(body, 1))
        finally:
            thread.close()

    asyncio.run(refused())


def test_an_accelerator_that_fails_for_good_is_told_at_once() -> None:
    told: list[RuntimeError] = []

    async def asked() -> None:
        thread = TorchThread()
        try:
            engine = LocalEngine(thread, DEVICE, lost=told.append)
            body = await engine.perform(OpenBody(toy.job(PLAIN), "toy.phone-1", "phone-1"))
            MODULE.fails_with = torch.AcceleratorError("CUDA error: device-side assert triggered")
            with pytest.raises(RuntimeError, match="device-side"):
                await engine.perform(forward_of(body, 1))
        finally:
            thread.close()

    asyncio.run(asked())
    assert [is_lost(error) for error in told] == [True]
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost(torch.OutOfMemoryError("CUDA out of memory"))


def test_processors_are_named() -> None:
    assert processors() == [CPU, DEVICE]
    assert processor_named("cpu") == CPU
    assert processor_named("standin") == processor_named("standin:0") == DEVICE
    for name in ("standin:1", "cuda:0", "cpu:1", "gpu", "", "cuda:x", "rm -rf"):
        with pytest.raises(UserError, match="finds cpu, standin:0"):
            processor_named(name)
    with pytest.raises(UserError) as refused:
        processor_named("cuda:0")
    assert "built for CPUs alone" in str(refused.value)


@pytest.fixture
def settled() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("settled")
def test_an_accelerator_keeps_to_deterministic_algorithms() -> None:
    settle(CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    settle(DEVICE)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_a_plain_trainer_of_that_processor_has_the_same_bits() -> None:
    job = toy.job(PLAIN)
    plain = SegmentTrainer(job.body.on(DEVICE), job.spec, device="phone-1", role="body")
    body = opened()
    (activation,) = values(1).values
    assert isinstance(activation, Tensor)
    graph = plain.forward([activation.to(DEVICE)])
    forwarded = perform_now(forward_of(body, 1), DEVICE)
    assert torch.equal(graph.outputs[0].cpu(), forwarded.outputs.values[0])  # type: ignore[union-attr, arg-type]


def test_a_probe_is_kept_by_processor() -> None:
    job = toy.job(PLAIN)
    perform_now(Probe(job), DEVICE)
    assert (job.digest, str(DEVICE)) in probe._known
    assert accelerator.description(CPU) == ""
