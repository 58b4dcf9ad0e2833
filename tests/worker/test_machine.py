"""A worker's session, request by request: every row of its table of transitions is walked here.

A script is a list of states that a session goes through, each with the request that led there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from broker import encode
from broker.protocol import messages as m
from broker.protocol.rows import recall_of, row_names
from server_worker.session.states import EVERYWHERE, TRANSITIONS, State, transition
from server_worker.store import SqliteStore
from tests.simulation import toy
from tests.worker.test_actions import Script, session_of

S = State
TWO = toy.Variant(batch=4, micro_batches=2)
SINGLE = toy.Variant(single=True)
SINGLE_TWO = toy.Variant(single=True, batch=4, micro_batches=2)
Row = tuple[State, type[m.AnyRequest], State]


class Walk:
    """A device's requests to one of two workers, which share a store."""

    def __init__(self, variant: toy.Variant = TWO) -> None:
        self.variant = variant
        self.store = SqliteStore(None, inline=True)
        self.attempt = 1
        self.rows: set[Row] = set()
        self.script = Script(self.store, variant)
        self.session = session_of(self.store)
        self._forwards: dict[tuple[int, int], m.Forward] = {}
        self._asked: m.AnyRequest | None = None

    async def tell(self, request: m.AnyRequest) -> State:
        before = self.session.state
        await self.script.run(self.session.handle(request, encode(request)))
        after = self.session.state
        self.rows.add((before, type(request), after))
        self._asked = request
        return after

    def answer(self) -> m.Message:
        """The last reply."""
        return self.script.replies[-1]

    async def by_another(self, request: m.AnyRequest) -> None:
        """Another worker serves the request, which takes the session over."""
        rival = session_of(self.store, worker="w2")
        await self.script.run(rival.handle(request, encode(request)))

    def _within(self, step: int) -> dict[str, Any]:
        return {"session": "toy.phone-1", "attempt": self.ref(), "step": step}

    def ref(self) -> m.AttemptRef:
        return m.AttemptRef(number=self.attempt, nonce=f"{self.attempt:016}")

    # the requests

    def opening(self, device: str = "phone-1") -> m.Open:
        job = toy.job(self.variant)
        return m.Open(session=f"toy.{device}", attempt=self.ref(), digest=job.digest, held=(0,))

    async def open(self, *, again: bool = False) -> State:
        self.attempt += again
        return await self.tell(self.opening())

    def forward_of(self, step: int, micro: int = 0, rows: int | None = None) -> m.Forward:
        parts = self.variant.micro_batches
        samples = rows or 4 // parts
        labels = (torch.zeros(samples, dtype=torch.int64),) if self.variant.single else ()
        request = m.Forward(
            **self._within(step),
            samples=samples,
            batch=4 if parts > 1 else None,
            micro=micro,
            oldest_checkpoint=0,
            values=(torch.ones(samples, 5), *labels),
            targets=len(labels),
        )
        self._forwards[step, micro] = request
        return request

    async def forward(self, step: int = 1, micro: int = 0, rows: int | None = None) -> State:
        return await self.tell(self.forward_of(step, micro, rows))

    def recall_of(self, step: int, micro: int = 0) -> m.Recall:
        """The RECALL of a FORWARD whose rows the session keeps."""
        forward = self.forward_of(step, micro)
        self.session._rows.keep(forward, toy.job(self.variant).digest)
        names = row_names(forward.values[:1], forward.samples)
        assert names is not None
        recall = recall_of(forward, names, lambda _: True)
        assert recall is not None
        return recall

    def backward_of(self, step: int, micro: int = 0) -> m.Backward:
        about = self._forwards[step, micro]
        values = (torch.ones(about.samples, 5),)
        return m.Backward(**self._within(step), micro=micro, forward=about.request, values=values)

    async def backward(self, step: int = 1, micro: int = 0) -> State:
        return await self.tell(self.backward_of(step, micro))

    def ready_of(self, device: str = "phone-1") -> m.Ready:
        within = {**self._within(1), "session": f"toy.{device}"}
        return m.Ready(**within, round=0, samples=0, oldest_checkpoint=0)

    async def ready(self) -> State:
        return await self.tell(self.ready_of())

    async def ask(self, about: m.AnyRequest) -> State:
        forward = about.forward if isinstance(about, m.Backward) else about.request
        kind: Any = about.kind
        step = about.step  # type: ignore[union-attr]
        micro = getattr(about, "micro", 0)
        return await self.tell(
            m.Ask(**self._within(step), about=about.request, about_kind=kind, forward=forward, micro=micro)
        )

    async def evaluate(self, step: int = 0) -> State:
        return await self.tell(m.Eval(**self._within(step), samples=4, values=(torch.ones(4, 5),)))

    async def get_body(self, step: int = 0) -> State:
        return await self.tell(m.GetBody(**self._within(step)))

    async def close(self, step: int = 0) -> State:
        return await self.tell(m.Close(**self._within(step)))

    async def take_step(self, step: int = 1) -> State:
        await self.forward(step, 0), await self.backward(step, 0)
        await self.forward(step, 1)
        return await self.backward(step, 1)

    async def others_are_ready(self) -> None:
        """Two more devices come, and the first round begins."""
        for device in ("phone-2", "phone-3"):
            session = session_of(self.store, device, worker=device)
            for request in (self.opening(device), self.ready_of(device)):
                await self.script.run(session.handle(request, encode(request)))


Steps = AsyncIterator[tuple[State, State]]
SCRIPTS: list[tuple[toy.Variant, Callable[[Walk], Steps]]] = []


def script(variant: toy.Variant = TWO) -> Callable[[Callable[[Walk], Steps]], Callable[[Walk], Steps]]:
    """Register a script: it yields the state that is there and the one that should be."""

    def register(function: Callable[[Walk], Steps]) -> Callable[[Walk], Steps]:
        SCRIPTS.append((variant, function))
        return function

    return register


@script()
async def a_step_of_two_micro_batches(walk: Walk) -> Steps:
    yield await walk.open(), S.READY
    yield await walk.forward(1, 0), S.IN_STEP
    yield await walk.forward(1, 1), S.IN_STEP
    yield await walk.backward(1, 0), S.IN_STEP
    yield await walk.backward(1, 1), S.READY
    assert isinstance(walk.answer(), m.Gradient)
    yield await walk.evaluate(1), S.READY
    yield await walk.close(1), S.READY
    assert isinstance(walk.answer(), m.Closed)


@script()
async def what_comes_before_its_turn_waits(walk: Walk) -> Steps:
    await walk.open()
    first = walk.forward_of(1, 0)
    yield await walk.forward(1, 1), S.WAITING
    assert isinstance(walk.answer(), m.Missing)
    yield await walk.tell(first), S.IN_STEP
    yield await walk.forward(1, 1), S.WAITING  # it was computed again on the device, and so begins again


@script()
async def a_backward_before_its_forward(walk: Walk) -> Steps:
    await walk.open()
    first = walk.forward_of(1, 0)
    yield await walk.backward(1, 0), S.WAITING
    yield await walk.tell(first), S.IN_STEP


@script(toy.Variant())
async def a_forward_that_lets_the_whole_step_be_taken(walk: Walk) -> Steps:
    await walk.open()
    first = walk.forward_of(1)
    yield await walk.backward(1), S.WAITING
    yield await walk.tell(first), S.READY
    assert isinstance(walk.answer(), m.Gradient)


@script(SINGLE)
async def a_single_split(walk: Walk) -> Steps:
    yield await walk.open(), S.READY
    walk.session.drop()
    yield await walk.forward(1), S.READY
    assert isinstance(walk.answer(), m.Gradient)


@script(SINGLE_TWO)
async def a_single_split_of_two_micro_batches(walk: Walk) -> Steps:
    await walk.open()
    yield await walk.forward(1, 0), S.IN_STEP
    yield await walk.forward(1, 1), S.READY


@script()
async def a_step_of_rows_that_are_kept(walk: Walk) -> Steps:
    await walk.open()
    first, other = walk.recall_of(1, 0), walk.recall_of(1, 1)
    yield await walk.tell(other), S.WAITING
    yield await walk.tell(first), S.IN_STEP
    assert isinstance(walk.answer(), m.Forwarded)
    yield await walk.tell(first), S.IN_STEP
    assert isinstance(walk.answer(), m.Forwarded)
    yield await walk.tell(walk.recall_of(1, 1)), S.WAITING  # it was computed again on the device
    for recall, expected in ((first, S.IN_STEP), (other, S.WAITING)):
        walk.session.drop()
        yield await walk.tell(recall), expected


@script(toy.Variant())
async def kept_rows_that_let_the_whole_step_be_taken(walk: Walk) -> Steps:
    await walk.open()
    first = walk.recall_of(1)
    yield await walk.backward(1), S.WAITING
    yield await walk.tell(first), S.READY
    assert isinstance(walk.answer(), m.Gradient)


@script(SINGLE_TWO)
async def kept_rows_of_a_single_split(walk: Walk) -> Steps:
    await walk.open()
    yield await walk.tell(walk.recall_of(1, 0)), S.IN_STEP
    yield await walk.tell(walk.recall_of(1, 1)), S.READY


@script(SINGLE)
async def kept_rows_of_a_session_that_is_loaded(walk: Walk) -> Steps:
    await walk.open()
    recall = walk.recall_of(1)
    walk.session.drop()
    yield await walk.tell(recall), S.READY
    assert isinstance(walk.answer(), m.Gradient)


@script()
async def a_request_that_is_refused_gives_up_the_step(walk: Walk) -> Steps:
    await walk.open()
    yield await walk.forward(1, 0), S.IN_STEP
    yield await walk.forward(1, 1, rows=3), S.READY
    assert isinstance(walk.answer(), m.Error)


@script()
async def a_new_attempt_gives_up_the_step(walk: Walk) -> Steps:
    await walk.open()
    yield await walk.forward(1, 0), S.IN_STEP
    yield await walk.open(again=True), S.READY


@script()
async def the_session_is_loaded_for_any_request(walk: Walk) -> Steps:
    await walk.open()
    first, other = walk.forward_of(1, 0), walk.forward_of(1, 1)
    for request, expected in (
        (walk.opening(), S.READY),
        (first, S.IN_STEP),
        (other, S.WAITING),
        (walk.backward_of(1, 0), S.WAITING),
    ):
        walk.session.drop()
        assert walk.session.state is S.ABSENT
        yield await walk.tell(request), expected
    walk.session.drop()
    yield await walk.ask(first), S.READY
    for ask in (walk.evaluate, walk.get_body, walk.close):
        walk.session.drop()
        yield await ask(), S.READY


@script()
async def the_gradient_of_a_committed_step_is_given_again(walk: Walk) -> Steps:
    await walk.open()
    await walk.take_step()
    last = walk.backward_of(1, 1)
    walk.session.drop()
    yield await walk.tell(last), S.READY
    assert isinstance(walk.answer(), m.Gradient)
    walk.session.drop()
    yield await walk.tell(walk._forwards[1, 0]), S.READY


@script()
async def another_worker_takes_the_session_over(walk: Walk) -> Steps:
    """The step that was open here is over: the store has another owner, and it is loaded again."""
    await walk.open()
    yield await walk.forward(1, 0), S.IN_STEP
    first = walk._forwards[1, 0]
    await walk.by_another(first)
    walk.session.doubt()
    yield await walk.backward(1, 0), S.WAITING
    assert isinstance(walk.answer(), m.Missing)


@script()
async def a_rival_that_committed_first_ends_what_is_here(walk: Walk) -> Steps:
    await walk.open()
    for micro in (0, 1):
        await walk.forward(1, micro)
    await walk.backward(1, 0)
    await walk.by_another(walk._forwards[1, 0])
    yield await walk.backward(1, 1), S.ABSENT


FLEET = toy.PLAIN_FLEET


@script(FLEET)
async def the_beginning_of_a_round(walk: Walk) -> Steps:
    yield await walk.open(), S.READY
    yield await walk.ready(), S.ROUND_END
    assert isinstance(walk.answer(), m.Busy)
    waits = walk._asked
    assert isinstance(waits, m.Ready)
    yield await walk.ask(waits), S.ROUND_END
    walk.session.drop()
    yield await walk.tell(waits), S.ROUND_END
    await walk.others_are_ready()
    yield await walk.ask(waits), S.READY
    assert isinstance(walk.answer(), m.Mean)


@script(FLEET)
async def ready_again_once_the_round_has_begun(walk: Walk) -> Steps:
    await walk.open()
    yield await walk.ready(), S.ROUND_END
    waits = walk._asked
    assert isinstance(waits, m.Ready)
    await walk.others_are_ready()
    yield await walk.tell(waits), S.READY
    walk.session.drop()
    yield await walk.tell(waits), S.READY  # the mean that it went on from is given again


@script(FLEET)
async def ready_in_place_of_a_step(walk: Walk) -> Steps:
    await walk.open()
    yield await walk.forward(1), S.IN_STEP
    yield await walk.ready(), S.ROUND_END
    yield await walk.open(again=True), S.READY
    walk.forward_of(1)
    yield await walk.backward(1), S.WAITING
    yield await walk.ready(), S.ROUND_END


@script(toy.Variant(batch=4, micro_batches=2, epochs=2, fleet=FLEET.fleet))
async def another_attempt_trains_where_this_one_waited(walk: Walk) -> Steps:
    """Another worker opened the new attempt: what waits here is of the old one."""
    await walk.open()
    for request, expected in (
        ("first", S.IN_STEP),
        ("second", S.WAITING),
        ("back", S.WAITING),
        ("first of kept rows", S.IN_STEP),
        ("second of kept rows", S.WAITING),
    ):
        yield await walk.ready(), S.ROUND_END
        walk.attempt += 1
        await walk.by_another(walk.opening())
        made = {
            "first": lambda: walk.forward_of(1, 0),
            "second": lambda: walk.forward_of(1, 1),
            "first of kept rows": lambda: walk.recall_of(1, 0),
            "second of kept rows": lambda: walk.recall_of(1, 1),
            "back": lambda: (walk.forward_of(1, 0), walk.backward_of(1, 0))[1],
        }
        yield await walk.tell(made[request]()), expected


async def walked(variant: toy.Variant, function: Callable[[Walk], Steps]) -> Walk:
    walk = Walk(variant)
    async for found, expected in function(walk):
        assert found is expected, f"{found} where {expected} should be, after {walk.answer()}"
    await walk.store.close()
    return walk


@pytest.mark.parametrize(("variant", "function"), SCRIPTS, ids=[each.__name__ for _, each in SCRIPTS])
async def test_a_script_goes_through_its_states(
    variant: toy.Variant, function: Callable[[Walk], Steps]
) -> None:
    await walked(variant, function)


async def test_every_row_of_the_table_is_walked() -> None:
    done: set[Row] = set()
    for variant, function in SCRIPTS:
        done |= (await walked(variant, function)).rows
    table = {
        (state, kind, after)
        for state, row in TRANSITIONS.items()
        for kind, states in row.items()
        for after in states
    }
    assert not table - done, sorted(str(row) for row in table - done)
    assert {after for _, _, after in done} >= EVERYWHERE


async def test_a_way_that_is_not_in_the_table_is_refused_and_drops_what_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walk = Walk()
    await walk.open()
    rows = {kind: after - {S.IN_STEP} for kind, after in TRANSITIONS[S.READY].items()}
    monkeypatch.setitem(TRANSITIONS, S.READY, rows)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=r"READY to .*IN_STEP on FORWARD"):
        await walk.forward(1, 0)
    assert walk.session.state is S.ABSENT
    await walk.store.close()


def test_what_is_in_doubt_may_go_from_everywhere() -> None:
    request = m.Close(session="toy.phone-1", attempt=m.AttemptRef(number=1, nonce="0" * 16), step=1)
    for state in State:
        assert transition(state, request, S.ABSENT)
    assert not transition(S.ABSENT, request, S.IN_STEP)
