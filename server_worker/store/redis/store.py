"""The store on Redis (7.0 or newer): blobs by SET, and one small script that makes a write conditional.

Keys of a session share one hash tag, so that it lives on one node of a cluster:

    spliteasy:{SESSION}:record         its version, the record, `log.K` and `snapshot.K`: entries of blobs
    spliteasy:{SESSION}:request:U:i    a piece of a request, with a time to live until an entry names it; a
                                       small one is written in the commit's own round trip
    spliteasy:{SESSION}:snapshot:U:i   a piece of a snapshot, likewise
    spliteasy:{SESSION}:waiting        the blobs that no entry names yet, with their bytes
    spliteasy:{SESSION}:deliveries     how often requests were delivered again, without an end
    spliteasy:{SESSION}:losses         the loss curve, by step
    spliteasy:{NAME@DIGEST}:job        a job's manifest; :part:U:i are the pieces of its parts
    spliteasy:sessions                 the sessions by the time of their last change, about
    spliteasy:names                    the sessions by name
    spliteasy:due                      the sessions by the time at which retention looks at them next
    spliteasy:{.}:deliveries           the same, of deliveries that nobody has read yet
    spliteasy:stack                    how many shards the stack has, and the type of its queues
    spliteasy:allowed                  the jobs of devices that may train these only
    spliteasy:fleet:{NAME@DIGEST}:…    a fleet's rounds (`fleets.py`)

A name U is never used twice, so a copy of a write that arrives late (the client library retries, and the
first try may have been on its way) can't touch what an entry has named meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypedDict

import orjson

from server_worker.store import rules
from server_worker.store.base import (
    DELIVERIES_TTL_S,
    MAX_LOSSES,
    PUT_TTL_S,
    UNREAD,
    Attempt,
    Blob,
    CommitOutcome,
    Done,
    LogEntry,
    OpenOutcome,
    Owner,
    SessionMeta,
    StoredJob,
    WantedParts,
    WorkerInfo,
    all_parts,
)
from server_worker.store.records import (
    decode_session,
    decode_worker,
    encode_session,
    encode_worker,
    grouped,
    pieces,
)
from server_worker.store.redis import scripts
from server_worker.store.redis.fleets import RedisFleets
from server_worker.store.redis.link import Command, RedisLink
from server_worker.store.redis.values import PIECE_BYTES, Entry, get_values, put_values, write_pieces
from server_worker.store.sessions import Change, Moved, Sessions, Versioned, Written
from spliteasy.errors import StoreError, StoreFull, UserError

HELD_BYTES = 256 << 10
"""A request up to here goes to Redis with the commit that names it: one round trip instead of two."""

HELD_BYTES_TOTAL = 64 << 20
"""All requests that wait for their commits may take this many bytes; beyond it they are written at once."""

MAX_DELIVERIES_SESSION, MAX_DELIVERIES_UNREAD = 1000, 100_000
"""The counts of deliveries that are kept of a session, and of all that is not read yet. With one more, all of
them go: somebody makes them up."""

READ_SESSIONS = 500
"""Records of sessions that are read in one round trip."""

READ_STEPS = 64
"""Log entries looked up in one round trip; their blobs come in groups of some MiB."""

_ALLOWED = "spliteasy:allowed"
_DUE = "spliteasy:due"
_JOBS = "spliteasy:jobs"
_NAMES = "spliteasy:names"
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
    """A request that was put: its blob, and what the commit still has to write."""

    token: str
    pieces: int
    nbytes: int
    writes: tuple[Command, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Beside:
    """Blobs that a change of a record names, or waits with."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    """New ones, by the name of their field in the record."""
    writes: Sequence[Command] = ()
    """The commands that write blobs in the same round trip."""
    wait: Mapping[str, str] = field(default_factory=dict)
    """Blobs that are written next and have no entry yet: BYTES COUNT, by token."""
    gone: Sequence[str] = ()
    """Blobs that waited, in the place of these."""
    clear: str | None = None
    """All that waits is deleted, of the kind that this is the beginning of."""


class RedisStore(Sessions[_Beside, _Request]):
    """The store on a Redis server; `open_store` makes one. It owns `link`."""

    def __init__(self, link: RedisLink, *, put_ttl_s: float = PUT_TTL_S) -> None:
        super().__init__(put_ttl_s=put_ttl_s, ticks=time.monotonic)
        self._link = link
        self._touched: dict[str, float] = {}
        """Sessions that changed since the last heartbeat, and when."""
        self._put_ttl_ms = round(put_ttl_s * 1000)
        self.fleets = RedisFleets(link, put_ttl_ms=self._put_ttl_ms, token=self._unique)

    @property
    def loss_window_s(self) -> float:
        return self._link.loss_window_s

    async def check_format(self) -> None:
        """Raises UserError where the sessions there were written by a version that kept them otherwise.

        Where an older version left sessions out of an index, they are put into it.
        """
        indexes = (_SESSIONS, _NAMES, _DUE)
        try:
            there, *indexed = await self._link.batch([("ZCARD", each) for each in indexes])
        except StoreError as error:
            if "WRONGTYPE" not in error.message:
                raise
            raise UserError(
                "the store holds sessions of version 0.1 of SplitEasy, which this version can't read",
                hint="let their trainings end with the version that began them, or name another database",
            ) from None
        if min(indexed) < there:
            all_of = ("ZUNIONSTORE", _NAMES, 1, _SESSIONS, "WEIGHTS", 0)
            due = ("ZUNIONSTORE", _DUE, 2, _SESSIONS, _DUE, "WEIGHTS", 0, 1, "AGGREGATE", "MAX")
            await self._link.batch([all_of, due])

    async def now(self) -> float:
        seconds, micros = await self._link.call("TIME")
        return float(seconds + micros / 1e6)

    async def shards(self, first: int | None = None) -> int | None:
        if first is not None:
            await self._link.call("HSETNX", _STACK, "shards", first)
        found = await self._link.call("HGET", _STACK, "shards")
        return None if found is None else int(found)

    async def queue_type(self, first: str | None = None) -> str | None:
        if first is not None:
            await self._link.call("HSETNX", _STACK, "queues", first)
        found = await self._link.call("HGET", _STACK, "queues")
        return None if found is None else str(found, "utf-8")

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

    async def open_session(self, session: str, **asked: Any) -> OpenOutcome:
        outcome = await super().open_session(session, **asked)
        if isinstance(outcome, Done):
            # After the session, so that no `forget` in between can leave it out of the list.
            await self._link.batch(_indexing(outcome.meta))
        return outcome

    async def hand_over(self, session: str, **asked: Any) -> CommitOutcome:
        outcome = await super().hand_over(session, **asked)
        if isinstance(outcome, Done):  # the new version may be kept for less long
            await self._link.call("ZADD", _DUE, "XX", outcome.meta.updated_at, session)
        return outcome

    async def _load(self, session: str) -> Versioned | None:
        return _versioned(session, *await self._link.batch(_reading(session)))

    async def _store(self, change: Change[_Beside]) -> Written | Moved:
        beside, after = change.beside or _Beside(), change.after
        asked = {
            "before": "" if change.before is None else change.before.version,
            "after": "" if after is None else after.version,
            "touch": change.touch,
            "drop": [
                *(f"log.{step}" for step in change.dropped_steps),
                *(f"snapshot.{step}" for step in change.dropped_snapshots),
            ],
            "entries": {name: entry.encode() for name, entry in beside.entries.items()},
            "wait": beside.wait,
            "gone": beside.gone,
            "ttl_ms": self._put_ttl_ms,
        }
        clear = "" if change.moved_hands else beside.clear
        if clear is not None:
            asked["clear"] = clear
        if change.idle_s is not None:
            asked["idle_s"] = change.idle_s
        script = scripts.CREATE if change.before is None else scripts.WRITE
        record = b"" if after is None else encode_session(after.meta)
        keys = [f"{_base(change.session)}:record"]
        word, *found = await self._link.script(script, keys, orjson.dumps(asked), record, after=beside.writes)
        match word:
            case b"missing":
                raise StoreError(f"session {change.session}: a blob to be named is not in the store any more")
            case b"moved":
                return Moved(_versioned(change.session, found[:4], [b"%d" % found[4]]))
        if after is None:
            return Written(None)
        _, _, log_bytes, updated, waiting = found
        if change.touch:
            self._touched[change.session] = float(updated)
        return Written(
            replace(
                after.meta, log_bytes=int(log_bytes), updated_at=float(updated), waiting_bytes=int(waiting)
            )
        )

    # requests and the log

    async def put_request(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, index: int, body: Blob
    ) -> None:
        cut = list(pieces(body, PIECE_BYTES))
        nbytes = sum(map(len, cut))
        place: _Place = {"step": step, "attempt": attempt, "owner": owner, "index": index}
        self._requests.check_room(session, **place, nbytes=nbytes)
        token = f"request:{self._unique()}"
        writes = tuple(
            ("SET", key, piece, "NX", "PX", self._put_ttl_ms)
            for key, piece in zip(_keys(session, token, len(cut)), cut, strict=True)
        )
        held = nbytes <= min(HELD_BYTES, HELD_BYTES_TOTAL - self._requests.held_bytes)
        if not held:
            last = self._requests.get(session, step=step, attempt=attempt, owner=owner, count=index + 1)[-1]
            waits = await self._move(
                session,
                lambda meta: rules.put_aside(meta, attempt=attempt, owner=owner, step=step),
                beside=_Beside(wait={token: f"{nbytes} {len(cut)}"}, gone=[last.token] if last else []),
                touch=False,
            )
            if isinstance(waits, Done):  # else the session is another's by now, as the commit will say
                async with self._full_leaves_nothing(session, token):
                    await write_pieces(self._link, writes)
        self._requests.put(
            session,
            **place,
            value=_Request(token, len(cut), nbytes, writes if held else ()),
            nbytes=nbytes,
            held_bytes=nbytes if held else 0,
        )

    async def keep_requests(self, session: str, *, attempt: Attempt, owner: Owner) -> None:
        if self._requests.keep(session, attempt=attempt, owner=owner):
            await self._link.script(scripts.KEEP, [f"{_base(session)}:record"], self._put_ttl_ms)

    def _logged(
        self, session: str, step: int, gradient_digest: str, requests: Sequence[_Request | None]
    ) -> _Beside:
        there = [request for request in requests if request is not None]
        blobs = {request.token: request.pieces for request in there}
        if len(there) < len(requests):
            blobs["none"] = 1  # never given out: the store finds it missing, if all else is right
        entry = Entry(sum(request.nbytes for request in there), blobs, gradient_digest)
        writes = [write for request in there for write in request.writes]
        return _Beside(
            entries={f"log.{step}": entry}, writes=() if "none" in blobs else writes, clear="request:"
        )

    async def put_snapshot(
        self, session: str, *, attempt: Attempt, owner: Owner, step: int, tensors: Mapping[str, Blob]
    ) -> CommitOutcome:
        def decide(meta: SessionMeta | None) -> CommitOutcome:
            return rules.snapshotted(meta, attempt=attempt, owner=owner, step=step)

        def wait(meta: SessionMeta | None) -> CommitOutcome:
            outcome = decide(meta)
            return outcome if meta is None or not isinstance(outcome, Done) else Done(meta=meta)

        # A caller that may not or need not store it sends no blobs; the rules decide again with them.
        meta = await self.session(session)
        outcome = decide(meta)
        if not isinstance(outcome, Done) or outcome.meta == meta:
            return outcome
        token = f"snapshot:{self._unique()}"
        count = sum(1 for tensor in tensors.values() for _ in pieces(tensor, PIECE_BYTES))
        size = f"{sum(memoryview(tensor).nbytes for tensor in tensors.values())} {count}"
        waits = await self._move(session, wait, beside=_Beside(wait={token: size}), touch=False)
        if not isinstance(waits, Done):
            return waits
        async with self._full_leaves_nothing(session, token):
            count, index = await put_values(
                self._link, f"{_base(session)}:{token}", tensors, ttl_ms=self._put_ttl_ms
            )
        return await self._move(
            session,
            decide,
            beside=_Beside(entries={f"snapshot.{step}": Entry(0, {token: count}, index.decode())}),
            reached=lambda before, after: step in after.stored and step not in before.stored,
        )

    async def read_snapshot(self, session: str, step: int) -> dict[str, bytes]:
        meta = await self.session(session)
        if meta is not None and step in meta.stored:
            if not step:
                return {}
            if (entry := await self._entry(session, f"snapshot.{step}")) is not None:
                (token,) = entry.blobs
                return await get_values(self._link, f"{_base(session)}:{token}", entry.text)
        raise KeyError(f"session {session} has no snapshot of step {step}")

    async def read_log(self, session: str, *, after: int, upto: int) -> AsyncIterator[LogEntry]:
        for first in range(after + 1, upto + 1, READ_STEPS):
            steps = range(first, min(first + READ_STEPS, upto + 1))
            names = [f"log.{step}" for step in steps]
            found = await self._link.call("HMGET", f"{_base(session)}:record", *names)
            entries = [None if entry is None else Entry.decode(entry) for entry in found]
            for group in grouped([entry.nbytes if entry else 0 for entry in entries]):
                keys = [key for place in group for key in _keys_of(session, entries[place])]
                bodies = iter(await self._link.call("MGET", *keys) if keys else [])
                for place in group:
                    entry = entries[place]
                    if entry is None:
                        raise KeyError(f"session {session} has no log entry of step {steps[place]}")
                    cut = [list(islice(bodies, count)) for count in entry.blobs.values()]
                    if any(None in request for request in cut):
                        raise KeyError(
                            f"session {session}: the entry of step {steps[place]} was just dropped"
                        )
                    requests = tuple(b"".join(request) for request in cut)
                    yield LogEntry(step=steps[place], requests=requests, gradient_digest=entry.text)

    async def _entry(self, session: str, name: str) -> Entry | None:
        found = await self._link.call("HGET", f"{_base(session)}:record", name)
        return None if found is None else Entry.decode(found)

    async def _discard(self, session: str, beside: _Beside) -> None:
        for name, offered in beside.entries.items():
            entry = await self._entry(session, name)
            gone = [token for token in offered.blobs if entry is None or token not in entry.blobs]
            if gone:
                keys = [key for token in gone for key in _keys(session, token, offered.blobs[token])]
                waiting = f"{_base(session)}:waiting"
                await self._link.batch([("UNLINK", *keys), ("HDEL", waiting, *gone)])

    # reports

    async def add_losses(self, session: str, losses: Mapping[int, float]) -> None:
        points = sorted(losses.items())
        for start in range(0, len(points), MAX_LOSSES):
            flat = [value for point in points[start : start + MAX_LOSSES] for value in point]
            count = await self._link.script(scripts.ADD_LOSSES, [f"{_base(session)}:record"], *flat)
            dropped = rules.thinned(await self.losses(session)) if count > MAX_LOSSES else ()
            if dropped:
                await self._link.call("HDEL", f"{_base(session)}:losses", *dropped)

    async def losses(self, session: str) -> Mapping[int, float]:
        found = await self._link.call("HGETALL", f"{_base(session)}:losses")
        return dict(sorted((int(step), float(loss)) for step, loss in found.items()))

    async def sessions(self) -> Sequence[SessionMeta]:
        found = await self._link.call("ZRANGE", _SESSIONS, 0, -1)
        return await self._records(sorted(name.decode() for name in found))

    async def session_count(self) -> int:
        return int(await self._link.call("ZCARD", _SESSIONS))

    async def session_counts(self, jobs: Sequence[str]) -> Mapping[str, int]:
        if not jobs:
            return {}
        ranges = [("ZLEXCOUNT", _NAMES, f"[{job}.", f"({job}/") for job in jobs]  # / comes after the dot
        return dict(zip(jobs, map(int, await self._link.batch(ranges)), strict=True))

    async def active_count(self, within_s: float) -> int:
        since = await self.now() - within_s
        return int(await self._link.call("ZCOUNT", _SESSIONS, since, "+inf"))

    async def sessions_after(self, count: int, after: str = "") -> Sequence[SessionMeta]:
        if not count:
            return []
        first = f"({after}" if after else "-"
        found = await self._link.call("ZRANGE", _NAMES, first, "+", "BYLEX", "LIMIT", 0, count)
        return await self._records([name.decode() for name in found])

    async def sessions_named(self, names: Sequence[str]) -> Sequence[SessionMeta]:
        return await self._records(names)

    async def newest_sessions(self, count: int, *, skip: int = 0) -> Sequence[SessionMeta]:
        found = await self._link.call("ZRANGE", _SESSIONS, skip, skip + count - 1, "REV") if count else []
        metas = await self._records([name.decode() for name in found])
        return sorted(metas, key=lambda meta: (-meta.updated_at, meta.session))

    async def due_sessions(self, count: int, *, skip: int = 0) -> Sequence[SessionMeta]:
        now = await self.now()
        asked = ("ZRANGE", _DUE, "-inf", now, "BYSCORE", "LIMIT", skip, count)
        return await self._records([name.decode() for name in await self._link.call(*asked)])

    async def look_later(self, waits_s: Mapping[str, float]) -> None:
        if not waits_s:
            return
        now = await self.now()
        scores = [each for session, wait_s in waits_s.items() for each in (now + wait_s, session)]
        await self._link.call("ZADD", _DUE, "XX", *scores)

    async def _records(self, names: Sequence[str]) -> list[SessionMeta]:
        """Read the records of those that there are, many in a round trip."""
        metas = []
        for start in range(0, len(names), READ_SESSIONS):
            group = names[start : start + READ_SESSIONS]
            answers = await self._link.batch([command for name in group for command in _reading(name)])
            for place, name in enumerate(group):
                record = _versioned(name, *answers[2 * place : 2 * place + 2])
                metas += [] if record is None else [record.meta]
        return metas

    async def _delete(self, session: str, *args: Any, **unless: Any) -> bool:
        found = await super()._delete(session, *args, **unless)
        now = await self.session(session)
        if now is None:
            await self._link.batch([("ZREM", index, session) for index in (_SESSIONS, _NAMES, _DUE)])
            now = await self.session(session)
        if now is not None:
            # It stays, or was opened again in between; an open after this adds itself.
            await self._link.batch(_indexing(now))
        return found

    # requests that end their worker

    async def begin_delivery(self, session: str | None, request: str) -> int:
        ttl_ms = round(DELIVERIES_TTL_S * 1000)
        unread = session is None
        key = f"{_base(session or UNREAD)}:record"
        most = MAX_DELIVERIES_UNREAD if unread else MAX_DELIVERIES_SESSION
        counted = await self._link.script(scripts.BEGIN_DELIVERY, [key], request, ttl_ms, most, int(unread))
        return int(counted)

    async def end_delivery(self, session: str | None, request: str) -> None:
        await self._link.call("HDEL", f"{_base(session or UNREAD)}:deliveries", request)

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
        touched, self._touched = self._touched, {}
        commands: list[Command] = []
        if touched:  # XX: none that was forgotten meanwhile
            scores = [each for session, at in touched.items() for each in (at, session)]
            commands.append(("ZADD", _SESSIONS, "XX", "GT", *scores))
        try:
            await self._link.script(
                scripts.HEARTBEAT, [_WORKERS], info.worker, ttl_ms, encode_worker(info), after=commands
            )
        except StoreError:
            self._touched = touched | self._touched  # for the next beat
            raise
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
    async def _full_leaves_nothing(self, session: str, token: str) -> AsyncIterator[None]:
        """Take back what waits where there is no room to write it."""
        try:
            yield
        except StoreFull:
            await self._link.call("HDEL", f"{_base(session)}:waiting", token)
            raise


def _indexing(meta: SessionMeta) -> list[Command]:
    """Return the commands that put a session into every list of sessions."""
    return [
        ("ZADD", _SESSIONS, meta.updated_at, meta.session),
        ("ZADD", _NAMES, 0, meta.session),
        ("ZADD", _DUE, "NX", meta.updated_at, meta.session),
    ]


def _reading(session: str) -> list[Command]:
    """Return the commands whose answers `_versioned` takes."""
    fields = ("version", "record", "log_bytes", "updated")
    return [("HMGET", f"{_base(session)}:record", *fields), ("HVALS", f"{_base(session)}:waiting")]


def _versioned(session: str, found: Sequence[Any], waiting: Sequence[bytes]) -> Versioned | None:
    """Read the record of a session; None where there is none."""
    version, record, log_bytes, updated = found
    if version is None:
        return None
    meta = decode_session(
        session,
        record,
        log_bytes=int(log_bytes),
        updated_at=float(updated),
        waiting_bytes=sum(int(size.partition(b" ")[0]) for size in waiting),
    )
    return Versioned(version.decode(), meta)


def _base(session: str) -> str:
    return f"spliteasy:{{{session}}}"


def _keys(session: str, token: str, count: int) -> list[str]:
    """Return the keys of a blob's pieces."""
    return [f"{_base(session)}:{token}:{piece}" for piece in range(count)]


def _keys_of(session: str, entry: Entry | None) -> Iterator[str]:
    for token, count in entry.blobs.items() if entry else ():
        yield from _keys(session, token, count)
