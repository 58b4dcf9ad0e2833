"""Changes on Redis between a snapshot's first question and its script, which must judge again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from server_worker.store import Done, Owner, SessionMeta, StaleAttempt, StaleOwner, StepBehind, Store
from server_worker.store.redis.link import connect
from server_worker.store.redis.store import RedisStore
from tests.store.steps import FIRST, SECOND, SESSION, begin, done, open_at, run_steps, snapshot

pytestmark = pytest.mark.redis


class RacedStore(RedisStore):
    """Does `meanwhile` once, right after it has been told how the session stands."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def session(self, session: str) -> SessionMeta | None:
        meta = await super().session(session)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return meta


@pytest.fixture
async def raced(redis_url: str) -> AsyncIterator[RacedStore]:
    store = RacedStore(await connect(redis_url))
    yield store
    await store.close()


async def pieces(store: RacedStore) -> set[bytes]:
    """Keys of snapshots' pieces, named or not."""
    return set(await store._link.call("KEYS", "*snapshot:*"))


async def other_owner(store: Store) -> None:
    await store.claim(SESSION, attempt=FIRST, step=5, worker="w2")


async def rewind(store: Store) -> None:
    await open_at(store, attempt=SECOND, held=(2,))


async def lose_all(store: Store) -> None:
    """The store went back to its beginning, and the same worker opened the same attempt again."""
    await store.forget(SESSION)
    await run_steps(store, await begin(store), 1)


@pytest.mark.parametrize(
    ("meanwhile", "outcome"),
    [
        (other_owner, StaleOwner(stored=Owner(fence=2, nonce="w2"))),
        (rewind, StaleAttempt(stored=SECOND)),
        (lose_all, StepBehind(committed=1)),
    ],
)
async def test_a_snapshot_refused_at_the_last_moment_leaves_nothing_behind(
    raced: RacedStore, meanwhile: Callable[[Store], Awaitable[None]], outcome: object
) -> None:
    meta = await run_steps(raced, await begin(raced), 4)
    raced.meanwhile = lambda: meanwhile(raced)
    assert await snapshot(raced, meta, 4) == outcome
    assert raced.meanwhile is None
    assert await pieces(raced) == set()
    with pytest.raises(KeyError):
        await raced.read_snapshot(SESSION, 4)


async def test_a_rival_that_was_first_keeps_its_snapshot(raced: RacedStore) -> None:
    meta = await run_steps(raced, await begin(raced), 4)
    raced.meanwhile = lambda: snapshot(raced, meta, 4, b"rival")
    assert done(await snapshot(raced, meta, 4, b"late")).snapshots == (0, 4)
    assert await raced.read_snapshot(SESSION, 4) == {"weight": b"rival"}
    assert len(await pieces(raced)) == 1


async def test_a_snapshot_that_the_trim_overtook_is_not_stored(raced: RacedStore) -> None:
    meta = await run_steps(raced, await begin(raced), 4, oldest=3)

    async def newer() -> None:
        assert done(await snapshot(raced, meta, 3, b"newer")).snapshots == (3,)

    raced.meanwhile = newer
    outcome = await snapshot(raced, meta, 2, b"late")
    assert isinstance(outcome, Done)
    assert outcome.meta.snapshots == (3,)
    assert len(await pieces(raced)) == 1


@pytest.fixture
async def second(redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(await connect(redis_url))
    yield store
    await store.close()


async def test_a_session_opened_while_it_is_forgotten_is_listed_if_it_is_there(
    raced: RacedStore, second: RedisStore
) -> None:
    there = 0
    for moment in range(100):

        async def open_after(moment: int = moment) -> None:
            """The first ones are before the end of the session is told, the last ones after it is gone."""
            await asyncio.sleep(moment / 5000)
            await open_at(second)

        await begin(raced)
        await asyncio.gather(raced.forget(SESSION), open_after())
        stored = await raced.session(SESSION)
        assert await raced.sessions() == ([] if stored is None else [stored])
        there += stored is not None
    assert there > 0
