"""What a session asks for while it serves a step, read without a shell: its actions are data."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import torch

from broker import encode
from broker.protocol import messages as m
from server_worker.action import Action, Steps
from server_worker.admission.budget import Budget
from server_worker.engine.base import EngineRequest, Together
from server_worker.engine.local import perform_now
from server_worker.kept_rows import KeptRows
from server_worker.replica.actions import LoadJob
from server_worker.replica.durability import DurabilityClock
from server_worker.replica.replica import Replica, WorkerIdentity
from server_worker.session.actions import Send
from server_worker.session.machine import WorkerSession
from server_worker.session.reorder_buffer import MemoryBudget
from server_worker.store import SqliteStore, Store
from server_worker.store.calls import Begin, CommitStep, Finish, PutRequest, PutSnapshot, StoreAction
from spliteasy.errors import StoreError, StoreUnavailable
from tests.simulation import toy
from tests.worker.conftest import ATTEMPT, JOB, SESSION
from tests.worker.test_refusals import forward


class Script:
    """Performs a session's actions over an inline store, and keeps them."""

    def __init__(self, store: Store, variant: toy.Variant = JOB) -> None:
        self._store = store
        self._variant = variant
        self.actions: list[Action[Any]] = []
        self.replies: list[m.Message] = []

    def names(self) -> list[str]:
        """What was asked for since the last look."""
        names = [_name(action) for action in self.actions]
        self.actions.clear()
        return names

    async def run(self, steps: Steps[None]) -> None:
        try:
            action = next(steps)
            while True:
                self.actions.append(action)
                try:
                    result = await self._perform(action)
                except StoreError as error:
                    action = steps.throw(error)
                else:
                    action = steps.send(result)
        except StopIteration:
            return

    async def _perform(self, action: Action[Any]) -> Any:
        match action:
            case EngineRequest():
                return perform_now(action)
            case StoreAction():
                return await action.call(self._store)
            case Begin(call):
                begun = asyncio.ensure_future(call.call(self._store))
                await asyncio.wait([begun])
                return begun
            case Finish(handle):
                return await handle
            case LoadJob():
                return toy.job(self._variant)
            case Send(reply):
                self.replies.append(reply)
        return None


def _name(action: Action[Any]) -> str:
    inner = {Begin: "call", Together: "requests"}.get(type(action))
    parts = getattr(action, inner) if inner else ()
    named = [type(part).__name__ for part in (parts if isinstance(parts, tuple) else (parts,))]
    return f"{type(action).__name__}({', '.join(named)})" if named else type(action).__name__


def session_of(
    store: Store,
    device: str = "phone-1",
    worker: str = "w1",
    may_work: Callable[[str, int], bool] = lambda _device, _nbytes: True,
) -> WorkerSession:
    replica = Replica(
        f"toy.{device}",
        WorkerIdentity(nonce=worker),
        job="toy",
        device=device,
        durability=DurabilityClock(0.0, lambda: 0.0),
        clock=lambda: 0.0,
    )
    return WorkerSession(
        f"toy.{device}",
        replica,
        shard=7,
        memory_budget=MemoryBudget(1 << 30),
        budget=Budget(1 << 30),
        rows=KeptRows(1 << 20, lambda: 0.0),
        may_work=may_work,
        clock=lambda: 0.0,
    )


async def test_the_actions_of_a_step_in_order() -> None:
    store = SqliteStore(None, inline=True)
    script, session = Script(store), session_of(store)
    opening = m.Open(session=SESSION, attempt=ATTEMPT, digest=toy.job(JOB).digest, held=(0,))
    await script.run(session.handle(opening, b""))
    assert script.names() == [
        "ReadAllowed",
        "LoadJob",
        "Probe",
        "ReadSession",
        "OpenSession",
        "LoadJob",
        "LoadJob",
        "OpenBody",
        "ReadSnapshot",
        "Loaded",
        "ReadNewestVersion",
        "Send",
    ]
    first = forward()
    await script.run(session.handle(first, encode(first)))
    put = script.actions[0]
    assert isinstance(put, Begin)
    assert isinstance(put.call, PutRequest)
    assert (put.call.session, put.call.step, put.call.index) == (SESSION, 1, 0)
    assert script.names() == ["Begin(PutRequest)", "Forward", "Send"]
    back = m.Backward(
        session=SESSION, attempt=ATTEMPT, step=1, forward=first.request, values=(torch.ones(4, 5),)
    )
    await script.run(session.handle(back, encode(back)))
    (commit,) = [action for action in script.actions if isinstance(action, CommitStep)]
    assert (commit.session, commit.step, commit.requests) == (SESSION, 1, 2)
    assert script.names() == [
        "Begin(PutRequest)",
        "Together(Backward, Step)",
        "Finish",
        "Finish",
        "CommitStep",
        "Committed",
        "Send",
    ]
    assert [type(reply) for reply in script.replies] == [m.Opened, m.Forwarded, m.Gradient]
    await store.close()


async def test_a_snapshot_that_could_not_be_written_is_written_again_before_the_session_is_parked() -> None:
    """Its bytes leave beside the next steps, so that nobody waits for how that ended."""
    store = SqliteStore(None, inline=True)
    script, session = Script(store), session_of(store)
    opening = m.Open(session=SESSION, attempt=ATTEMPT, digest=toy.job(JOB).digest, held=(0,))
    await script.run(session.handle(opening, b""))

    async def lost(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the store did not answer")

    written, store.put_snapshot = store.put_snapshot, lost  # type: ignore[assignment, method-assign]
    for step in (1, 2, 3):
        request = forward(step)
        await script.run(session.handle(request, encode(request)))
        back = m.Backward(
            session=SESSION, attempt=ATTEMPT, step=step, forward=request.request, values=(torch.ones(4, 5),)
        )
        await script.run(session.handle(back, encode(back)))
    begun = [action.call for action in script.actions if isinstance(action, Begin)]
    assert [put.step for put in begun if isinstance(put, PutSnapshot)] == [3]
    script.actions.clear()
    store.put_snapshot = written  # type: ignore[method-assign]
    await script.run(session.park())
    assert script.names() == ["Finish", "TakeSnapshot", "PutSnapshot"]
    meta = await store.session(SESSION)
    assert meta is not None
    assert meta.snapshots[-1] == 3
    await store.close()
