"""Rows that a worker keeps: bounded, a session's own, and never taken for others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from broker import decode, encode
from broker.protocol import messages as m
from broker.protocol.rows import recall_of, row_names
from server_worker.kept_rows import RESTED_S, ROW_OVERHEAD_BYTES, KeptRows
from server_worker.store import SqliteStore
from spliteasy.errors import DataError
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, SESSION, Server
from tests.worker.test_actions import Script, session_of
from tests.worker.test_refusals import forward

ROW = 20 + ROW_OVERHEAD_BYTES
JOB, OTHER = "a" * 64, "b" * 64
_GENERATOR = torch.Generator().manual_seed(5)


class Clock:
    """Seconds that a test moves on."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def rows(count: int = 4) -> m.Forward:
    """A FORWARD of new rows of five numbers."""
    return forward(samples=count, values=(torch.randn(count, 5, generator=_GENERATOR),), keep=True)


def named(request: m.Forward, known: Callable[[bytes], bool] = lambda _: True, **changes: Any) -> m.Recall:
    names = row_names(request.values[: len(request.values) - request.targets], request.samples)
    assert names is not None
    recall = recall_of(request, names, known)
    assert recall is not None
    return recall.model_copy(update=changes)


def names_in(recall: m.Recall) -> Tensor:
    assert isinstance(recall.values[0], Tensor)
    return recall.values[0]


def served(kept: KeptRows, recall: m.Recall) -> m.Forward:
    """The FORWARD, as a session gets it."""
    assert not list(kept.absent(recall, JOB))
    return kept.forward(recall, JOB)


def test_what_is_kept_comes_back_to_the_bit_in_any_order() -> None:
    kept, first = KeptRows(1 << 20, Clock()), rows()
    assert kept.keep(first, JOB)
    (tensor,) = first.values
    assert isinstance(tensor, Tensor)
    again = forward(samples=4, values=(tensor[[2, 0, 3, 1]],), keep=True)
    recall = decode(encode(named(again)))
    assert isinstance(recall, m.Recall)
    assert not list(kept.absent(recall, JOB))
    assert encode(kept.forward(recall, JOB)) == encode(again)


def test_rows_that_travel_are_put_in_their_places() -> None:
    kept, first, second = KeptRows(1 << 20, Clock()), rows(), rows()
    kept.keep(first, JOB)
    (a,), (b,) = first.values, second.values
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    mixed = forward(samples=4, values=(torch.stack([b[1], a[3], b[0], a[1]]),), keep=True)
    own = row_names(first.values, 4)
    assert own is not None
    recall = named(mixed, lambda name: name in own)
    assert recall.sent == ((0, 1), (2, 3))
    assert encode(kept.forward(recall, JOB)) == encode(mixed)


def test_a_session_has_a_share_of_the_room_and_the_rested_go() -> None:
    clock = Clock()
    kept = KeptRows(12 * ROW, clock)
    first, other = rows(6), rows(6)
    assert kept.keep(first, JOB)
    assert not kept.keep(rows(1), JOB), "six rows are half of the room"
    assert kept.keep(other.model_copy(update={"session": "toy.phone-2"}), JOB)
    assert kept.nbytes == kept.limit_bytes
    third = rows(2).model_copy(update={"session": "toy.phone-3"})
    assert not kept.keep(third, JOB), "nobody has rested"
    clock.now_s = RESTED_S + 1
    kept.absent(named(first), JOB)  # the first session is at work
    assert kept.keep(third, JOB)
    assert not list(kept.absent(named(first), JOB))
    gone = named(other).model_copy(update={"session": "toy.phone-2"})
    assert list(kept.absent(gone, JOB)) == [(0, 6)]
    for session in (SESSION, "toy.phone-2", "toy.phone-3"):
        kept.forget(session)
    assert kept.nbytes == 0


def test_what_was_kept_first_stays() -> None:
    """Were the oldest put out, an epoch that does not fit would find nothing of the one before."""
    kept, first = KeptRows(8 * ROW, Clock()), rows(3)
    kept.keep(first, JOB)
    for _ in range(5):
        kept.keep(rows(2), JOB)
    assert kept.nbytes == 4 * ROW
    assert not list(kept.absent(named(first), JOB))


def test_no_room_keeps_nothing() -> None:
    kept = KeptRows(0, Clock())
    assert not kept.keep(rows(), JOB)
    assert kept.nbytes == 0


def test_rows_are_a_sessions_own_and_a_versions() -> None:
    kept, first = KeptRows(1 << 20, Clock()), rows()
    kept.keep(first, JOB)
    recall = named(first)
    assert list(kept.absent(recall.model_copy(update={"session": "toy.phone-2"}), JOB)) == [(0, 4)]
    assert list(kept.absent(recall, OTHER)) == [(0, 4)]
    assert list(kept.absent(recall, JOB)) == [(0, 4)], "another version has put them out"


def test_a_recall_that_can_not_be_right_is_refused() -> None:
    kept, first = KeptRows(1 << 20, Clock()), rows()
    kept.keep(first, JOB)
    right = named(first)
    for wrong in (
        right.model_copy(update={"values": ()}),
        right.model_copy(update={"values": (7,)}),
        right.model_copy(update={"values": (names_in(right).float(), None)}),
        right.model_copy(update={"values": (names_in(right)[:3], None)}),
        right.model_copy(update={"samples": 1 << 20}),
        right.model_copy(update={"sent": ((3, 5),)}),
        right.model_copy(update={"sent": ((2, 1),)}),
        right.model_copy(update={"targets": 2}),
        right.model_copy(update={"values": (names_in(right), 4)}),
        right.model_copy(update={"values": (names_in(right), None, None)}),
        right.model_copy(update={"sent": ((0, 1),), "values": (names_in(right), None)}),
        right.model_copy(update={"sent": ((0, 1),), "values": (names_in(right), torch.randn(1, 5))}),
        right.model_copy(update={"sent": ((0, 1),), "values": (names_in(right), torch.randn(1, 6))}),
    ):
        with pytest.raises(DataError):
            served(kept, wrong)


async def test_a_worker_computes_the_same_from_rows_that_it_keeps(server: Server) -> None:
    """FORWARDED is the same, and the log has the FORWARD whole."""
    first = rows()
    async with server.device() as device:
        await device.open()
        forwarded = await device.ask(first)
        assert isinstance(forwarded, m.Forwarded)
        assert forwarded.kept is True
        again = m.AttemptRef(number=2, nonce="b" * 16)
        digest = toy.job(toy.Variant()).digest
        await device.ask(m.Open(session=SESSION, attempt=again, digest=digest, held=(0,)))
        second = first.model_copy(update={"attempt": again, "request": m.new_nonce()})
        answer = await device.ask(named(second))
        assert isinstance(answer, m.Forwarded)
        assert (answer.answers, answer.kept) == (second.request, True)
        for one, other in zip(forwarded.values, answer.values, strict=True):
            assert isinstance(one, Tensor)
            assert isinstance(other, Tensor)
            assert torch.equal(one, other)
        (output,) = answer.values
        assert isinstance(output, Tensor)
        back = m.Backward(
            session=SESSION, attempt=again, step=1, forward=second.request, values=(torch.ones(4, 5),)
        )
        assert isinstance(await device.ask(back), m.Gradient)
    entry = await anext(server.store.read_log(SESSION, after=0, upto=1))
    assert entry.requests[0] == encode(second)


async def test_rows_that_are_not_kept_are_named_and_the_forward_is_taken(server: Server) -> None:
    first = rows()
    async with server.device() as device:
        await device.open()
        recall = named(first)
        answer = await device.ask(recall)
        assert isinstance(answer, m.Missing)
        assert (answer.answers, answer.missing, answer.rows) == (recall.request, "FORWARD", ((0, 4),))
        forwarded = await device.ask(first)
        assert isinstance(forwarded, m.Forwarded)
        assert isinstance(await device.ask(recall), m.Forwarded), "it is answered again"


async def test_a_device_that_does_not_ask_for_it_is_kept_no_rows(server: Server) -> None:
    first = rows().model_copy(update={"keep": None})
    async with server.device() as device:
        await device.open()
        forwarded = await device.ask(first)
        assert isinstance(forwarded, m.Forwarded)
        assert forwarded.kept is None
    assert server.worker.actors.rows.nbytes == 0


@pytest.mark.parametrize("samples", [5, 1 << 12])
async def test_more_names_than_a_batch_has_are_refused(server: Server, samples: int) -> None:
    names = torch.zeros(samples, 16, dtype=torch.uint8)
    recall = named(rows()).model_copy(update={"samples": samples, "values": (names, None)})
    async with server.device() as device:
        await device.open()
        answer = await device.ask(recall)
        assert isinstance(answer, m.Error)
        assert answer.code == "bad-tensor"
        assert "batch_size is 4" in answer.message


async def test_to_name_rows_costs_as_much_as_to_send_them() -> None:
    """What was put together is charged; a device over its quota is told to wait."""
    store, charged = SqliteStore(None, inline=True), list[tuple[str, int]]()

    def may_work(device: str, nbytes: int) -> bool:
        charged.append((device, nbytes))
        return len(charged) > 1

    script, session = Script(store), session_of(store, may_work=may_work)
    opening = m.Open(session=SESSION, attempt=ATTEMPT, digest=toy.job(toy.Variant()).digest, held=(0,))
    await script.run(session.handle(opening, b""))
    first = rows()
    session._rows.keep(first, opening.digest)
    recall = named(first)
    for _ in range(2):
        await script.run(session.handle(recall, encode(recall)))
    assert charged == [("phone-1", len(encode(first)))] * 2
    _, busy, forwarded = script.replies
    assert isinstance(busy, m.Busy)
    assert isinstance(forwarded, m.Forwarded)
    await store.close()
