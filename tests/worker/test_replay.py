"""A worker that computes other bits than the one before it does not go on."""

from __future__ import annotations

import pytest
import torch

from broker.protocol import messages as m
from server_worker.engine import body_trainer
from server_worker.engine.body_trainer import BodyTrainer
from server_worker.replica.direct_body import DirectBody
from server_worker.replica.loaded_body import StepResult
from spliteasy.training.digest import digest_of
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, SESSION, Server
from tests.worker.test_metrics import one_step
from tests.worker.test_refusals import forward

OTHER = "0" * 32


async def test_a_step_that_replays_to_other_bits_is_refused_with_both_digests(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_step(server)
    again = m.AttemptRef(number=2, nonce="b" * 16)
    monkeypatch.setattr(body_trainer, "digest_of", lambda _values: OTHER)  # as other hardware would give
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


def trainer_of(body: DirectBody) -> BodyTrainer:
    """What the engine has of the body."""
    trainer = body.loaded.body
    assert isinstance(trainer, BodyTrainer)
    return trainer


def step_of(body: DirectBody, step: int) -> StepResult:
    """One step without any gradient: what goes back to the device is the same each time."""
    request = forward(step)
    body.forward(request)
    (output,) = body.outputs(0).values
    assert isinstance(output, torch.Tensor)
    result = body.backward(
        m.Backward(session=SESSION, attempt=ATTEMPT, step=step, forward=request.request, values=(output * 0,))
    )
    assert result is not None
    return result


def test_the_digest_of_a_step_is_of_the_state_too() -> None:
    """Gradients alone may be one constant: all of these are zero."""
    first, same, other = (DirectBody(toy.job(JOB), SESSION) for _ in range(3))
    digests = [step_of(first, step).digest for step in (1, 2, 3)]
    assert [step_of(same, step).digest for step in (1, 2, 3)] == digests
    assert len(set(digests)) == 3
    with torch.no_grad():
        next(trainer_of(other).trainer.segment.parameters()).view(-1)[0] += 1e-7
    results = [step_of(other, step) for step in (1, 2, 3)]
    assert all(float(value.abs().sum()) == 0 for each in results for value in each.micros[0].gradients.values)  # type: ignore[union-attr]
    assert not {result.digest for result in results} & set(digests)


def test_the_digest_is_of_what_codecs_held_back() -> None:
    variant = toy.Variant(activations="topk:0.5", gradients="topk:0.3")
    one, two = (DirectBody(toy.job(variant), SESSION) for _ in range(2))
    first, second = trainer_of(one), trainer_of(two)
    key = next(iter([*first._packer.state(), "feedback/gradients/0/0/4x5"])).partition("/")[2]
    second._packer._memory[key] = torch.full((4, 5), 0.5)
    assert first._digest([]) != second._digest([])


async def test_an_entry_of_an_earlier_version_is_not_taken_for_other_bits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(body_trainer, "DIGEST", "")
        await one_step(server)
    again = m.AttemptRef(number=2, nonce="b" * 16)
    async with server.device() as device:
        answer = await device.ask(
            m.Open(session=SESSION, attempt=again, digest=toy.job(JOB).digest, held=(0, 1))
        )
    assert isinstance(answer, m.Error)
    assert "earlier version" in answer.message
    assert "SIGTERM" in (answer.hint or "")


@pytest.mark.parametrize("right", [True, False])
async def test_gradients_of_other_outputs_than_this_workers_are_refused_with_both_digests(
    server: Server, right: bool
) -> None:
    async with server.device() as device:
        await device.open()
        request = forward()
        forwarded = await device.ask(request)
        assert isinstance(forwarded, m.Forwarded)
        own = digest_of(forwarded.values)
        (output,) = forwarded.values
        assert isinstance(output, torch.Tensor)
        answer = await device.ask(
            m.Backward(
                session=SESSION,
                attempt=ATTEMPT,
                step=1,
                forward=request.request,
                values=(output * 0,),
                outputs=own if right else OTHER,
            )
        )
        meta = await server.store.session(SESSION)
        assert meta is not None
        assert meta.committed == int(right)
        assert isinstance(answer, m.Gradient if right else m.Error)
        if isinstance(answer, m.Error):
            assert (answer.code, answer.retriable) == ("replay-mismatch", False)
            assert OTHER in answer.message
            assert own in answer.message


def test_a_digest_takes_tensors_of_any_stride() -> None:
    one = torch.ones(3)[:1].expand(1)
    for odd in (torch.ones(1).as_strided((1,), (0,)), torch.ones(5, 1)[::3][:1], torch.ones(0, 3), one):
        assert digest_of([odd]) == digest_of([torch.ones(odd.shape)])
