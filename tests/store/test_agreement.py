"""Random sequences of operations: Redis's scripts and the rules in Python answer alike, and as a plain model.

The model knows only what the contract promises: the history that the session's present line consists of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from deploy.nodes.redis_server import RedisServer
from server_worker.store import Attempt, Done, Owner, SessionMeta, SqliteStore, Store, open_store
from spliteasy.errors import StoreError, StoreUnavailable
from tests.fixtures_redis import ask_redis
from tests.store.steps import JOB, SESSION, log_of

WORKERS = st.sampled_from(["w1", "w2"])
ATTEMPTS = st.builds(Attempt, number=st.integers(0, 6), nonce=st.sampled_from(["aa", "bb"]))
STEPS = st.integers(-2, 2)
"""Relative to the committed one."""

_T = TypeVar("_T")


@dataclass
class Model:
    """The present line of history: what was committed at each step, which snapshots were offered."""

    log: dict[int, tuple[tuple[bytes, ...], str]] = field(default_factory=dict)
    snapshots: dict[int, bytes] = field(default_factory=dict)
    waiting: dict[object, dict[int, bytes]] = field(default_factory=dict)
    fence: int = 0

    def rewind(self, step: int) -> None:
        self.log = {key: value for key, value in self.log.items() if key <= step}
        self.snapshots = {key: value for key, value in self.snapshots.items() if key <= step}


class StoresAgree(RuleBasedStateMachine):
    """Every rule calls both stores. Callers are drawn to be right most of the time, wrong often enough."""

    redis_url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        redis = self.runner.run(open_store(self.redis_url))
        self.stores: tuple[Store, Store] = (SqliteStore(inline=True), redis)
        self.runner.run(redis.forget(SESSION))
        self.model = Model()
        self.count = 0

    def teardown(self) -> None:
        for store in self.stores:
            self.runner.run(store.close())
        self.runner.close()

    # plumbing

    def both(self, call: Callable[[Store], Awaitable[_T]]) -> _T:
        """The answer of both stores, which must be one."""
        first, second = (self.runner.run(self._answer(call, store)) for store in self.stores)
        assert first == second
        if isinstance(first, Exception):
            raise first
        answer: _T = first
        return answer

    @staticmethod
    async def _answer(call: Callable[[Store], Awaitable[Any]], store: Store) -> Any:
        try:
            return _comparable(await call(store))
        except StoreUnavailable:
            raise
        except StoreError:
            return _Missing()

    @property
    def meta(self) -> SessionMeta:
        """The session as stored, or a likeness of one that was never begun."""
        stored = self.both(lambda store: store.session(SESSION))
        return stored or SessionMeta(
            session=SESSION,
            job_digest=JOB,
            attempt=Attempt(number=1, nonce="aa"),
            resume_step=0,
            owner=Owner(fence=1, nonce="w1"),
            committed=0,
            snapshots=(0,),
            oldest_checkpoint=0,
            environment="",
            log_bytes=0,
            closed=False,
            updated_at=0,
        )

    def caller(self, wrong: int) -> SessionMeta:
        """Return whom to call as: 0-5 the right one; else another owner, fence or attempt."""
        meta = self.meta
        if wrong == 6:
            return replace(meta, owner=replace(meta.owner, nonce="w1"))
        if wrong == 7:
            return replace(meta, owner=replace(meta.owner, fence=meta.owner.fence - 1))
        if wrong == 8:
            return replace(meta, attempt=replace(meta.attempt, nonce="bb"))
        return meta

    # rules

    @rule(
        attempt=ATTEMPTS,
        newer=st.booleans(),
        held=st.lists(STEPS, max_size=4),
        zero=st.booleans(),
        worker=WORKERS,
        job=st.sampled_from([JOB] * 7 + ["1" * 64]),
        restart=st.sampled_from([False] * 7 + [True]),
    )
    def open(
        self, attempt: Attempt, newer: bool, held: list[int], zero: bool, worker: str, job: str, restart: bool
    ) -> None:
        before = self.meta
        if newer:
            attempt = replace(attempt, number=before.attempt.number + 1)
        steps = [max(0, before.committed + step) for step in held] + ([0] if zero else [])
        outcome = self.both(
            lambda store: store.open_session(
                SESSION,
                job_digest=job,
                attempt=attempt,
                held=steps,
                worker=worker,
                environment=worker,
                agent=f"1.{attempt.number}",
                total_steps=attempt.number,
                restart=restart,
            )
        )
        if isinstance(outcome, Done):
            self.model.rewind(outcome.meta.committed)
            assert outcome.meta.owner.nonce == worker
            if attempt != before.attempt:
                assert outcome.meta.committed in ([0] if restart else steps)

    @rule(job=st.sampled_from([JOB, "1" * 64]), worker=WORKERS, wrong=st.integers(0, 8))
    def hand_over(self, job: str, worker: str, wrong: int) -> None:
        meta = self.caller(wrong)
        outcome = self.both(
            lambda store: store.hand_over(
                SESSION, attempt=meta.attempt, owner=meta.owner, job_digest=job, environment=worker
            )
        )
        if isinstance(outcome, Done):
            assert outcome.meta.snapshots == (outcome.meta.committed,)
            assert outcome.meta.log_bytes == 0

    @rule(offset=STEPS, worker=WORKERS, wrong=st.integers(0, 8))
    def claim(self, offset: int, worker: str, wrong: int) -> None:
        meta = self.caller(wrong)
        step = meta.committed + offset
        outcome = self.both(
            lambda store: store.claim(SESSION, attempt=meta.attempt, step=step, worker=worker)
        )
        if isinstance(outcome, Done):
            assert outcome.meta.owner.nonce == worker

    @rule(
        offset=st.sampled_from([1, 1, 1, 1, 0, 2, -1]),
        requests=st.integers(0, 3),
        missing=st.sampled_from([False] * 9 + [True]),
        oldest=STEPS,
        wrong=st.integers(0, 8),
        repeats=st.integers(1, 2),
    )
    def commit(
        self, offset: int, requests: int, missing: bool, oldest: int, wrong: int, repeats: int
    ) -> None:
        meta = self.caller(wrong)
        step = meta.committed + offset
        self.count += 1
        place = (step, meta.attempt, meta.owner.nonce)
        waiting = self.model.waiting.setdefault(place, {})
        for index in range(requests - missing):
            body = waiting[index] = b"%d.%d" % (self.count, index)
            self.both(lambda store, index=index, body=body: self._put(store, meta, step, index, body))  # type: ignore[misc]
        for _ in range(repeats):
            try:
                outcome = self.both(lambda store: self._commit(store, meta, step, requests, oldest))
            except _Missing:
                assert not waiting.keys() >= set(range(requests))
                continue
            if isinstance(outcome, Done) and step not in self.model.log:
                bodies = tuple(waiting[index] for index in range(requests))
                self.model.log[step] = (bodies, f"ga{self.count}")
                assert outcome.meta.committed == step
            self.model.waiting.pop(place, None)

    async def _put(self, store: Store, meta: SessionMeta, step: int, index: int, body: bytes) -> None:
        await store.put_request(
            SESSION, attempt=meta.attempt, owner=meta.owner, step=step, index=index, body=body
        )

    async def _commit(self, store: Store, meta: SessionMeta, step: int, requests: int, oldest: int) -> object:
        return await store.commit(
            SESSION,
            attempt=meta.attempt,
            owner=meta.owner,
            step=step,
            requests=requests,
            gradient_digest=f"ga{self.count}",
            oldest_checkpoint=max(0, step + oldest),
        )

    @rule(offset=st.integers(-4, 1), wrong=st.integers(0, 8))
    def snapshot(self, offset: int, wrong: int) -> None:
        meta = self.caller(wrong)
        step = max(0, meta.committed + offset)
        self.count += 1
        body = b"snapshot %d" % self.count
        outcome = self.both(
            lambda store: store.put_snapshot(
                SESSION, attempt=meta.attempt, owner=meta.owner, step=step, tensors={"weight": body}
            )
        )
        if isinstance(outcome, Done) and step in outcome.meta.stored:
            self.model.snapshots.setdefault(step, body)

    @rule(offset=st.integers(-4, 1), wrong=st.integers(0, 8))
    def keep(self, offset: int, wrong: int) -> None:
        meta = self.caller(wrong)
        step = max(0, meta.committed + offset)
        self.both(
            lambda store: store.keep_snapshot(SESSION, attempt=meta.attempt, owner=meta.owner, step=step)
        )

    @rule(wrong=st.integers(0, 8))
    def close(self, wrong: int) -> None:
        meta = self.caller(wrong)
        self.both(lambda store: store.close_session(SESSION, attempt=meta.attempt, owner=meta.owner))

    @rule(paused=st.booleans())
    def pause(self, paused: bool) -> None:
        known = self.both(lambda store: store.session(SESSION)) is not None
        assert self.both(lambda store: store.pause(SESSION, paused)) == known
        assert self.meta.paused == (paused and known)

    @rule(really=st.sampled_from([False] * 9 + [True]))
    def forget(self, really: bool) -> None:
        if really:
            self.both(lambda store: store.forget(SESSION))
            self.model = Model()

    # invariants

    @invariant()
    def what_is_stored_is_the_history(self) -> None:
        meta = self.both(lambda store: store.session(SESSION))
        if meta is None:
            return
        oldest = meta.snapshots[0]
        assert list(meta.snapshots) == sorted(set(meta.snapshots))
        assert oldest <= meta.oldest_checkpoint <= max(meta.committed, 0)
        entries = self.both(lambda store: log_of(store, oldest, meta.committed))
        expected = [(step, *self.model.log[step]) for step in range(oldest + 1, meta.committed + 1)]
        assert [(entry.step, entry.requests, entry.gradient_digest) for entry in entries] == expected
        assert meta.log_bytes == sum(len(body) for _, bodies, _ in expected for body in bodies)
        assert list(meta.best) == sorted(set(meta.best))
        assert sum(step <= oldest for step in meta.best) <= 1
        for step in meta.stored:
            tensors = {"weight": self.model.snapshots[step]} if step else {}
            assert self.both(lambda store, step=step: store.read_snapshot(SESSION, step)) == tensors  # type: ignore[misc]

    @invariant()
    def the_fence_only_grows(self) -> None:
        meta = self.both(lambda store: store.session(SESSION))
        fence = 0 if meta is None else meta.owner.fence
        assert fence >= self.model.fence
        self.model.fence = fence

    @invariant()
    def nothing_else_is_kept(self) -> None:
        """The log reaches no further back than the oldest snapshot, nor beyond the committed step."""
        meta = self.both(lambda store: store.session(SESSION))
        if meta is None:
            return
        for step in (meta.snapshots[0], meta.committed + 1):
            for store in self.stores:
                with pytest.raises(KeyError):
                    self.runner.run(log_of(store, step - 1, step))


class _Missing(Exception):
    """A commit's request was not there: the stores say it in words of their own."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Missing)

    __hash__ = Exception.__hash__


def _comparable(answer: Any) -> Any:
    """Return the answer without the time, which each store takes from its own clock."""
    if isinstance(answer, Done):
        return Done(meta=replace(answer.meta, updated_at=0))
    if isinstance(answer, SessionMeta):
        return replace(answer, updated_at=0)
    return answer


def _agree(server: RedisServer, how: settings) -> None:
    machine = type("StoresAgree", (StoresAgree,), {"redis_url": server.url})
    run_state_machine_as_test(machine, settings=how)
    ask_redis(server, "FLUSHALL")


@pytest.mark.redis
def test_the_stores_agree(redis_server: RedisServer) -> None:
    _agree(redis_server, settings(max_examples=30, stateful_step_count=30))


@pytest.mark.redis
@pytest.mark.long
def test_the_stores_agree_over_long_histories(redis_server: RedisServer) -> None:
    _agree(redis_server, settings(max_examples=300, stateful_step_count=100, derandomize=False))
