"""The store on Redis (7.0 or newer): blobs by SET, everything that decides in one small script.

Keys of a session share one hash tag, so that it lives on one node of a cluster:

    spliteasy:{SESSION}:meta              the record; :log and :snapshots name blobs by their tokens
    spliteasy:{SESSION}:request:TOKEN     a piece of a request, with a time to live until a commit names it; a
                                          small one is written in the commit's own round trip
    spliteasy:{SESSION}:snapshot:TOKEN:i  a piece of a snapshot, likewise
    spliteasy:{SESSION}:waiting           the pieces that nothing names yet, with their bytes
    spliteasy:{SESSION}:deliveries        how often requests were delivered again, without an end
    spliteasy:{SESSION}:losses            the loss curve, by step
    spliteasy:{NAME@DIGEST}:job           a job's manifest; :part:TOKEN:i are the pieces of its parts
    spliteasy:stack                       how many shards the stack has
    spliteasy:allowed                     the jobs of devices that may train these only
    spliteasy:fleet:{NAME@DIGEST}:…       a fleet's rounds (`fleets.py`)

A token is never used twice, so a copy of a write that arrives late (the client library retries, and the
first try may have been on its way) can't touch what a script has named meanwhile.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypedDict

from server_worker.store import rules
from server_worker.store.base import (
    DELIVERIES_TTL_S,
    MAX_LOSSES,
    PUT_TTL_S,
    WAITING_BYTES,
    Attempt,
    Blob,
    ClaimOutcome,
    CommitOutcome,
    Done,
    LogEntry,
    NoCommonStep,
    OpenOutcome,
    OtherJob,
    Owner,
    SessionMeta,
    StaleOwner,
    StepBehind,
    StoredJob,
    UnknownSession,
    WantedParts,
    WorkerInfo,
    all_parts,
)
from server_worker.store.records import decode_worker, encode_worker, grouped, pieces
from server_worker.store.redis import scripts
from server_worker.store.redis.fleets import RedisFleets
from server_worker.store.redis.link import Command, RedisLink
from server_worker.store.redis.outcomes import Outcome, outcome_of
from server_worker.store.redis.values import PIECE_BYTES, get_values, joined, put_values, write_pieces
from server_worker.store.staging import StagedRequests
from spliteasy.errors import StoreError, StoreFull

HELD_BYTES = 256 << 10
"""A request up to here goes to Redis with the commit that names it: one round trip instead of two."""

HELD_BYTES_TOTAL = 64 << 20
"""All requests that wait for their commits may take this many bytes; beyond it they are written at once."""

READ_STEPS = 64
"""Log entries looked up in one round trip; their blobs come in groups of some MiB."""

_ALLOWED = "spliteasy:allowed"
_JOBS = "spliteasy:jobs"
_SESSIONS = "spliteasy:sessions"
_STACK = "spliteasy:stack"
_WORKERS = "spliteasy:workers"


class _Place(TypedDict):
    step: int
    attempt: Attempt
    owner: Owner
    index: int


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that was put: its pieces' tokens, and what the commit still has to write."""

    tokens: tuple[str, ...]
    writes: tuple[Command, ...]


class RedisStore:
    """The store on a Redis server; `open_store` makes one. It owns `link`."""

    def __init__(self, link: RedisLink, *, put_ttl_s: float = PUT_TTL_S) -> None:
        self._link = link
        self._put_ttl_ms = round(put_ttl_s * 1000)
        self._instance = secrets.token_hex(8)
        self._count = itertools.count()
        self._requests: StagedRequests[_Request] = StagedRequests(ttl_s=put_ttl_s, clock=time.monotonic)
        self.fleets = RedisFleets(link, put_ttl_ms=self._put_ttl_ms, token=self._unique)

    @property
    def loss_window_s(self) -> float:
        return self._link.loss_window_s

    async def now(self) -> float:
        seconds, micros = await self._link.call("TIME")
        return float(seconds + micros / 1e6)

    async def shards(self, first: int | None = None) -> int | None:
        if first is not None:
            await self._link.call("HSETNX", _STACK, "shards", first)
        found = await self._link.call("HGET", _STACK, "shards")
        return None if found is None else int(found)

    # jobs

    async def put_job(self, job: StoredJob) -> None:
        base = f"spliteasy:{{{job.name}@{job.digest}}}"
        if not await self._link.call("EXISTS", f"{base}:job"):
            token = self._unique()
            count, index = await put_values(
                self._link, f"{base}:part:{token}", job.parts, ttl_ms=self._put_ttl_ms
            )
            if not await self._link.script(
                scripts.ADD_JOB, [f"{base}:job"], token, count, index, job.manifest
            ):
                raise StoreError(f"job {job.name}@{job.digest}: its parts took too long to store")
        if job.signature is not None:  # first, so that no device gets the version without it
            await self._link.call("HSET", f"{base}:job", "signature", job.signature)
        await self._link.script(scripts.SUBMIT, [_JOBS], job.name, job.digest)

    async def get_job(
        self, name: str, digest: str | None = None, *, wanted: WantedParts = all_parts
    ) -> StoredJob | None:
        if digest is None:
            digests = await self._link.call("HGET", _JOBS, name)
            if digests is None:
                return None
            digest = str(digests, "utf-8").partition(" ")[0]
        base = f"spliteasy:{{{name}@{digest}}}"
        fields = ("manifest", "token", "index", "signature")
        manifest, token, index, signature = await self._link.call("HMGET", f"{base}:job", *fields)
        if manifest is None:
            return None
        parts = await get_values(self._link, f"{base}:part:{token.decode()}", index, wanted)
        signed = None if signature is None else signature.decode()
        return StoredJob(name=name, digest=digest, manifest=manifest, parts=parts, signature=signed)

    async def job_versions(self) -> Mapping[str, Sequence[str]]:
        found = await self._link.call("HGETALL", _JOBS)
        return {name.decode(): digests.decode().split(" ") for name, digests in sorted(found.items())}

    # sessions

    async def open_session(
        self,
        session: str,
        *,
        job_digest: str,
        attempt: Attempt,
        held: Sequence[int],
        worker: str,
        environment: str,
        agent: str = "",
        total_steps: int = 0,
        restart: bool = False,
    ) -> OpenOutcome:
        outcome = await self._decide(
            scripts.OPEN,
            session,
            job_digest,
            attempt.number,
            attempt.nonce,
            worker,
            environment,
            agent,
            total_steps,
            int(restart),
            *held,
        )
        assert not isinstance(outcome, StaleOwner | StepBehind | UnknownSession)
        if isinstance(outcome, Done):
            # After the session, so that no `forget` in between can leave it out of the list.
            await self._link.call("SADD", _SESSIONS, session)
        return outcome

    async def hand_over(
        self, session: str, *, attempt: Attempt, owner: Owner, job_digest: str, environment: str
    ) -> CommitOutcome:
        return await self._move(scripts.HAND_OVER, session, attempt, owner, job_digest, environment)

    async def claim(self, session: str, *, attempt: Attempt, step: int, worker: str) -> ClaimOutcome:
        outcome = await self._decide(scripts.CLAIM, session, attempt.number, attempt.nonce, step, worker)
        assert not isinstance(outcome, StaleOwner | OtherJob | NoCommonStep)
        return outcome

    async def session(self, session: str) -> SessionMeta | None:
        outcome = await self._decide(scripts.READ, session)
        return outcome.meta if isinstance(outcome, Done) else None

    async def put_request(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, index: int, body: Blob
    ) -> None:
        cut = list(pieces(body, PIECE_BYTES))
        tokens = tuple(self._token(attempt, owner, step, index) for _ in cut)
        writes = tuple(map(partial(self._set_request, session), tokens, cut))
        nbytes = sum(map(len, cut))
        place: _Place = {"step": step, "attempt": attempt, "owner": owner, "index": index}
        self._requests.check_room(session, **place, nbytes=nbytes)
        held = nbytes <= min(HELD_BYTES, HELD_BYTES_TOTAL - self._requests.held_bytes)
        if not held:
            sizes = [each for token, piece in zip(tokens, cut, strict=True) for each in (token, len(piece))]
            under = (attempt.number, attempt.nonce, owner.fence, owner.nonce, step, index)
            fields = [f"request:{token}" for token in tokens]
            match await self._link.script(
                scripts.WAIT, _keys(session), *under, self._put_ttl_ms, WAITING_BYTES, *sizes
            ):
                case [b"ok"]:
                    async with self._full_leaves_nothing(session, fields):
                        await write_pieces(self._link, writes)
                case [b"full"]:
                    raise StoreFull(
                        f"session {session} has {WAITING_BYTES} bytes of requests that are not committed yet",
                        hint="its next step takes their place",
                    )
                # Anything else: the session is another's by now, as the commit will say.
        self._requests.put(
            session,
            **place,
            value=_Request(tokens, writes if held else ()),
            nbytes=nbytes,
            held_bytes=nbytes if held else 0,
        )

    async def keep_requests(self, session: str, *, attempt: Attempt, owner: Owner) -> None:
        self._requests.keep(session, attempt=attempt, owner=owner)
        under = (attempt.number, attempt.nonce, owner.fence, owner.nonce)
        await self._link.script(scripts.KEEP, _keys(session), *under, self._put_ttl_ms)

    def _set_request(self, session: str, token: str, piece: Blob) -> Command:
        return "SET", f"spliteasy:{{{session}}}:request:{token}", piece, "NX", "PX", self._put_ttl_ms

    async def commit(
        self,
        session: str,
        *,
        attempt: Attempt,
        owner: Owner,
        step: int,
        requests: int,
        gradient_digest: str,
        oldest_checkpoint: int,
    ) -> CommitOutcome:
        found = self._requests.get(session, step=step, attempt=attempt, owner=owner, count=requests)
        outcome = await self._move(
            scripts.COMMIT,
            session,
            attempt,
            owner,
            step,
            oldest_checkpoint,
            gradient_digest,
            # "none" was never given out: the script looks at all else first, then finds no blob.
            *(token for request in found for token in (request.tokens if request else ("none",))),
            after=[write for request in found if request for write in request.writes],
        )
        self._requests.drop(session, step=step, owner=owner)
        return outcome

    async def put_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, tensors: Mapping[str, Blob]
    ) -> CommitOutcome:
        # A caller that may not or need not store it sends no blobs; the script decides again with them.
        meta = await self.session(session)
        outcome = rules.snapshotted(meta, attempt=attempt, owner=owner, step=step)
        if not isinstance(outcome, Done) or outcome.meta == meta:
            return outcome
        token = self._token(attempt, owner, step, 0)
        prefix, nbytes = f"spliteasy:{{{session}}}:snapshot:{token}", sum(map(len, tensors.values()))
        count = sum(1 for tensor in tensors.values() for _ in pieces(tensor, PIECE_BYTES))
        under = (attempt.number, attempt.nonce, owner.fence, owner.nonce, step)
        waits = await self._link.script(
            scripts.WAIT_SNAPSHOT, _keys(session), *under, self._put_ttl_ms, token, count, nbytes
        )
        if waits != [b"ok"]:
            return _moved(outcome_of(session, waits))
        async with self._full_leaves_nothing(session, [f"snapshot:{token}"]):
            count, index = await put_values(self._link, prefix, tensors, ttl_ms=self._put_ttl_ms)
        return await self._move(scripts.SNAPSHOT, session, attempt, owner, step, token, count, index)

    async def read_snapshot(self, session: str, step: int) -> dict[str, bytes]:
        record = await self._link.call("HGET", _keys(session)[2], step)
        if record is None:
            raise KeyError(f"session {session} has no snapshot of step {step}")
        token, _, index = record.split(b" ", 2)
        return await get_values(self._link, f"spliteasy:{{{session}}}:snapshot:{token.decode()}", index)

    async def read_log(self, session: str, *, after: int, upto: int) -> AsyncIterator[LogEntry]:
        for first in range(after + 1, upto + 1, READ_STEPS):
            steps = range(first, min(first + READ_STEPS, upto + 1))
            found = await self._link.call("HMGET", _keys(session)[1], *steps)
            records = [record.decode().split(" ") if record else ["0"] for record in found]
            for group in grouped([int(record[0]) for record in records]):
                tokens = [token for place in group for token in records[place][2:]]
                keys = [f"spliteasy:{{{session}}}:request:{token}" for token in tokens]
                bodies = iter(await self._link.call("MGET", *keys) if keys else [])
                for place in group:
                    if not found[place]:
                        raise KeyError(f"session {session} has no log entry of step {steps[place]}")
                    _, digest, *named = records[place]
                    found_pieces = list(islice(bodies, len(named)))
                    if None in found_pieces:
                        raise KeyError(
                            f"session {session}: the entry of step {steps[place]} was just dropped"
                        )
                    # A token names its request's index before its last dot.
                    requests = joined([token.split(".")[-2] for token in named], found_pieces)
                    yield LogEntry(step=steps[place], requests=requests, gradient_digest=digest)

    async def close_session(self, session: str, *, attempt: Attempt, owner: Owner) -> CommitOutcome:
        return await self._move(scripts.CLOSE, session, attempt, owner)

    async def pause(self, session: str, paused: bool) -> bool:
        return bool(await self._link.script(scripts.PAUSE, _keys(session), int(paused)))

    async def add_losses(self, session: str, losses: Mapping[int, float]) -> None:
        points = sorted(losses.items())
        for start in range(0, len(points), MAX_LOSSES):
            flat = [value for point in points[start : start + MAX_LOSSES] for value in point]
            count = await self._link.script(scripts.ADD_LOSSES, _keys(session), *flat)
            dropped = rules.thinned(await self.losses(session)) if count > MAX_LOSSES else ()
            if dropped:
                await self._link.call("HDEL", _losses_key(session), *dropped)

    async def losses(self, session: str) -> Mapping[int, float]:
        found = await self._link.call("HGETALL", _losses_key(session))
        return dict(sorted((int(step), float(loss)) for step, loss in found.items()))

    async def sessions(self) -> Sequence[SessionMeta]:
        names = sorted(name.decode() for name in await self._link.call("SMEMBERS", _SESSIONS))
        metas = [await self.session(name) for name in names]
        return [meta for meta in metas if meta is not None]

    async def forget(self, session: str) -> bool:
        self._requests.drop_session(session)
        return await self._forget(session)

    async def forget_abandoned(self, session: str, *, owner: Owner, idle_s: float) -> bool:
        return await self._forget(session, owner.fence, owner.nonce, idle_s)

    async def _forget(self, session: str, *unless: Any) -> bool:
        found = await self._link.script(scripts.FORGET, _keys(session), *unless)
        if unless and not found:
            return False  # it stays
        await self._link.call("SREM", _SESSIONS, session)
        if await self._link.call("EXISTS", _keys(session)[0]):
            # Opened again in between; an open after this adds itself.
            await self._link.call("SADD", _SESSIONS, session)
        return bool(found)

    # requests that end their worker

    async def begin_delivery(self, session: str, request: str) -> int:
        ttl_ms = round(DELIVERIES_TTL_S * 1000)
        return int(await self._link.script(scripts.BEGIN_DELIVERY, _keys(session), request, ttl_ms))

    async def end_delivery(self, session: str, request: str) -> None:
        await self._link.call("HDEL", f"spliteasy:{{{session}}}:deliveries", request)

    # devices

    async def allow(self, device: str, jobs: Sequence[str] | None) -> None:
        if jobs is None:
            await self._link.call("HDEL", _ALLOWED, device)
        else:
            await self._link.call("HSET", _ALLOWED, device, " ".join(jobs))

    async def allowed(self, devices: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        if not devices:
            return {}
        found = await self._link.call("HMGET", _ALLOWED, *devices)
        return {
            device: tuple(jobs.decode().split())
            for device, jobs in zip(devices, found, strict=True)
            if jobs is not None
        }

    # workers

    async def heartbeat(self, info: WorkerInfo, *, ttl_s: float) -> None:
        ttl_ms = round(ttl_s * 1000)
        await self._link.script(scripts.HEARTBEAT, [_WORKERS], info.worker, ttl_ms, encode_worker(info))
        with suppress(StoreError):  # it hides its configuration, or is away: the next call tells
            await self._link.look_after()

    async def leave(self, worker: str) -> None:
        await self._link.call("HDEL", _WORKERS, worker)

    async def workers(self) -> Sequence[WorkerInfo]:
        (seconds, micros), found = await self._link.batch([("TIME",), ("HGETALL", _WORKERS)])
        now_ms = seconds * 1000 + micros // 1000
        beats = [beat.split(b" ", 1) for _, beat in sorted(found.items())]
        return [decode_worker(info) for deadline_ms, info in beats if int(deadline_ms) > now_ms]

    async def close(self) -> None:
        """Let commands in flight finish, then disconnect. Twice is harmless."""
        await self._link.close()

    # plumbing

    @asynccontextmanager
    async def _full_leaves_nothing(self, session: str, fields: Sequence[str]) -> AsyncIterator[None]:
        """Take back what waits where there is no room to write it."""
        try:
            yield
        except StoreFull:
            await self._link.call("HDEL", f"spliteasy:{{{session}}}:waiting", *fields)
            raise

    def _token(self, attempt: Attempt, owner: Owner, step: int, index: int) -> str:
        return f"{step}.{attempt.number}.{attempt.nonce}.{owner.nonce}.{index}.{self._unique()}"

    def _unique(self) -> str:
        return f"{self._instance}-{next(self._count)}"

    async def _move(
        self,
        script: scripts.Script,
        session: str,
        attempt: Attempt,
        owner: Owner,
        *args: Any,
        after: Sequence[Command] = (),
    ) -> CommitOutcome:
        under = (attempt.number, attempt.nonce, owner.fence, owner.nonce)
        return _moved(await self._decide(script, session, *under, *args, after=after))

    async def _decide(
        self, script: scripts.Script, session: str, *args: Any, after: Sequence[Command] = ()
    ) -> Outcome:
        return outcome_of(session, await self._link.script(script, _keys(session), *args, after=after))


def _moved(outcome: Outcome) -> CommitOutcome:
    assert not isinstance(outcome, OtherJob | NoCommonStep)
    return outcome


def _keys(session: str) -> tuple[str, str, str]:
    base = f"spliteasy:{{{session}}}"
    return f"{base}:meta", f"{base}:log", f"{base}:snapshots"


def _losses_key(session: str) -> str:
    return f"spliteasy:{{{session}}}:losses"
