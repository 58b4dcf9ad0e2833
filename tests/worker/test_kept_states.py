"""A step's log entry holds its requests or the state that it gave, whichever is smaller."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from broker.protocol import messages as m
from server_worker.engine import body_trainer
from server_worker.replica import kept_state
from server_worker.replica.direct_body import DirectBody
from server_worker.replica.kept_state import holds_state, pack_state, unpack_state
from server_worker.replica.loaded_body import LoadedBody
from server_worker.store import LogEntry
from spliteasy.errors import StoreError
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, SESSION, Device, Server
from tests.worker.test_refusals import forward


def keep(monkeypatch: pytest.MonkeyPatch, *kinds: bool) -> None:
    """Let a step keep its state, or not, in turn; the last kind lasts."""
    left = list(kinds)
    monkeypatch.setattr(kept_state, "smaller", lambda *_: left.pop(0) if len(left) > 1 else left[0])


async def step(device: Device, number: int) -> tuple[m.Forward, m.Backward, m.Gradient]:
    request = forward(number)
    forwarded = await device.ask(request)
    assert isinstance(forwarded, m.Forwarded)
    (output,) = forwarded.values
    assert isinstance(output, torch.Tensor)
    returned = m.Backward(
        session=SESSION, attempt=ATTEMPT, step=number, forward=request.request, values=(output * 0.5,)
    )
    gradient = await device.ask(returned)
    assert isinstance(gradient, m.Gradient)
    return request, returned, gradient


def ask(about: m.Backward) -> m.Ask:
    return m.Ask(
        session=SESSION,
        attempt=ATTEMPT,
        step=about.step,
        about=about.request,
        about_kind="BACKWARD",
        micro=0,
        forward=about.forward,
    )


async def entries(server: Server) -> list[LogEntry]:
    meta = await server.store.session(SESSION)
    assert meta is not None
    return [e async for e in server.store.read_log(SESSION, after=meta.snapshots[0], upto=meta.committed)]


async def forget(server: Server) -> None:
    """Let it be as if another worker went on: nothing of the session is in memory."""
    actor = server.worker.actors[SESSION]
    await actor.wait_idle()
    actor.session.drop()


async def test_whatever_the_entries_hold_the_training_is_the_same(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, False, True, True, False, True, False)
    plain = DirectBody(toy.job(JOB), SESSION)
    async with server.device() as device:
        await device.open()
        for number in range(1, 7):
            request, returned, gradient = await step(device, number)
            plain.forward(request)
            result = plain.backward(returned)
            assert result is not None
            (value,) = gradient.values
            assert isinstance(value, torch.Tensor)
            assert torch.equal(value, result.micros[0].gradients.values[0])  # type: ignore[arg-type]
            await forget(server)
        kinds = [holds_state(entry) for entry in await entries(server)]
    assert kinds == [False, True, True, False, True, False][-len(kinds) :]
    assert True in kinds[:-1]


async def test_after_a_kept_state_a_takeover_replays_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, True)
    replayed: list[LogEntry] = []
    replay = LoadedBody._replay_requests

    def watched(self: LoadedBody, entry: LogEntry) -> object:
        replayed.append(entry)
        return replay(self, entry)

    monkeypatch.setattr(LoadedBody, "_replay_requests", watched)
    async with server.device() as device:
        await device.open()
        for number in (1, 2, 3):
            await step(device, number)
            await forget(server)
        await step(device, 4)
    assert replayed == []
    assert all(holds_state(entry) for entry in await entries(server))


@pytest.mark.parametrize("before", [True, False], ids=["on a kept state", "on a replayed step"])
async def test_a_lost_gradient_is_made_again_from_what_the_device_has(
    server: Server, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    keep(monkeypatch, before, True)
    async with server.device() as device:
        await device.open()
        await step(device, 1)
        request, returned, gradient = await step(device, 2)
        logged, meta = await entries(server), await server.store.session(SESSION)
        await forget(server)
        missing = [await device.ask(ask(returned)), await device.reply()]
        assert [reply.missing for reply in missing if isinstance(reply, m.Missing)] == ["FORWARD", "BACKWARD"]
        await device.ask(request)
        again = await device.ask(returned)
        assert isinstance(again, m.Gradient)
        assert again.answers == gradient.answers
        assert torch.equal(again.values[0], gradient.values[0])  # type: ignore[arg-type]
        assert await entries(server) == logged
        stored = await server.store.session(SESSION)
        assert stored is not None
        assert meta is not None
        assert (stored.committed, stored.log_bytes) == (meta.committed, meta.log_bytes)
        assert isinstance((await step(device, 3))[2], m.Gradient)


async def test_a_step_that_is_made_again_with_other_bits_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, True)
    async with server.device() as device:
        await device.open()
        request, returned, _ = await step(device, 1)
        (entry,) = await entries(server)
        await forget(server)
        monkeypatch.setattr(
            body_trainer, "digest_of", lambda _values: "0" * 32
        )  # as other hardware would give
        await device.ask(request)
        answer = await device.ask(returned)
    assert isinstance(answer, m.Error)
    assert answer.code == "replay-mismatch"
    assert entry.gradient_digest in answer.message


async def test_a_paused_session_still_gets_a_lost_gradient(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step was committed: that it is taken again begins none."""
    keep(monkeypatch, True)
    async with server.device() as device:
        await device.open()
        request, returned, _ = await step(device, 1)
        await server.store.pause(SESSION, True)
        await forget(server)
        assert isinstance(await device.ask(request), m.Forwarded)
        assert isinstance(await device.ask(returned), m.Gradient)
        assert isinstance(await device.ask(forward(2)), m.Busy)


def test_the_smaller_is_chosen_from_the_jobs_shapes_and_what_arrived() -> None:
    small, large = (DirectBody(toy.job(toy.Variant(batch=batch)), SESSION).loaded for batch in (4, 400))
    assert not kept_state.smaller(*small.write_bytes(forward(1)))
    request = forward(1)
    many = request.model_copy(update={"samples": 400, "values": (torch.randn(400, 5),)})
    state, sent = large.write_bytes(many)
    assert sent == 2 * 400 * 5 * 4
    assert kept_state.smaller(state, sent)
    part = many.model_copy(update={"samples": 200, "batch": 400, "values": (torch.randn(200, 5),)})
    assert large.write_bytes(part) == (state, sent)


def test_a_damaged_state_is_said_to_be_that() -> None:
    packed = pack_state({"one": b"abc", "two": b""})
    entry = LogEntry(step=3, requests=(packed,), gradient_digest="")
    assert unpack_state(entry) == {"one": b"abc", "two": b""}
    for damaged in (packed[:-1], packed + b"x", packed[:18], packed[:24]):
        assert holds_state(replace(entry, requests=(damaged,)))
        with pytest.raises(StoreError, match="of step 3 is damaged"):
            unpack_state(replace(entry, requests=(damaged,)))
