"""The dashboard's looks at broker and store for its page, and an operator's requests."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from spliteasy.errors import SplitEasyError, UserError
from spliteasy_cli.history.verdicts import GateVerdict, line_of, read_verdicts
from spliteasy_cli.watch.changes import Tracker, look_once, serving
from spliteasy_cli.watch.cluster import ClusterClient, ClusterSnapshot
from spliteasy_cli.watch.enrolled_devices import Device, as_devices
from spliteasy_cli.watch.fleet_view import FleetView, fleet_at_a_glance, read_fleet
from spliteasy_cli.watch.loss_curves import Curves

if TYPE_CHECKING:
    from broker import Transport
    from deploy.accounts import Accounts
    from server_worker.store import SessionMeta, Store
    from spliteasy_cli.dashboard import Feed

EVENTS = 200
SLOW_S = 5.0
"""Seconds between looks at accounts, and at fleets."""

ROUNDS = 12
"""Records of a fleet that are shown."""

RATES = 200
"""Points of the throughput's curve."""

RATE_EVERY_S = 2.0
log = structlog.get_logger(__name__)


class ClusterOperator:
    """Does on broker and store what an operator asks for on the page."""

    def __init__(self, eyes: ClusterClient, accounts: Accounts | None) -> None:
        self._eyes, self._accounts = eyes, accounts

    async def pause(self, session: str, paused: bool) -> bool:
        return await self._eyes.ask(lambda _, store: store.pause(session, paused))

    async def revoke(self, device: str) -> bool:
        if self._accounts is None:
            raise UserError(
                "the dashboard knows no management interface of the broker",
                hint="start it with --management URL",
            )
        return await asyncio.to_thread(_revoke_device, self._accounts, device)


class ClusterFeed:
    """Looks at broker and store again and again, and gives the feed what it sees."""

    def __init__(self, eyes: ClusterClient, accounts: Accounts | None, feed: Feed, verdicts: Path) -> None:
        """`verdicts`: the folder in which the gate keeps them."""
        self._eyes, self._accounts, self._feed = eyes, accounts, feed
        self._verdicts, self._gate = verdicts, dict[str, GateVerdict]()
        self._tracker = Tracker(events=deque(maxlen=EVENTS))
        self._rates: deque[tuple[float, float]] = deque(maxlen=RATES)
        self._curves = Curves(eyes)
        self._devices: Sequence[Device] | None = None
        self._fleets: list[dict[str, Any]] = []
        self._alone: set[str] = set()
        """Versions of jobs whose devices train alone."""
        self._slow_at = float("-inf")

    async def run(self, stop: asyncio.Event, every_s: float) -> None:
        while not stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await stop.wait()
            if not stop.is_set():
                await self.look()

    def look_at_all(self) -> None:
        """Look at accounts too the next time."""
        self._slow_at = float("-inf")

    async def look(self) -> None:
        """Raises LinkRefused and UserError the first time."""
        tracker, feed = self._tracker, self._feed
        await look_once(self._eyes.look, tracker, time.time, stays=True)
        picture, now = tracker.picture, time.time()
        if picture is not None and tracker.fault is None:
            self._add_rate(picture, now)
            await self._curves.look(picture)
            if time.monotonic() - self._slow_at >= SLOW_S:
                self._slow_at = time.monotonic()
                await self._look_at_accounts(picture)
                await self._look_at_verdicts()
                await self._look_at_fleets(picture)
        feed.publish("rates", [[round(at, 1), round(rate, 3)] for at, rate in self._rates])
        feed.publish("losses", self._curves.points)
        feed.publish("events", [_event(at, *news) for at, news in reversed(tracker.events)])
        if picture is not None:
            feed.publish("jobs", {name: list(digests) for name, digests in sorted(picture.jobs.items())})
            feed.publish(
                "gate",
                {name: line_of(self._gate, digests[0]) for name, digests in sorted(picture.jobs.items())},
            )
            feed.publish("fleets", self._fleets)
            feed.publish("workers", [_worker(each) for each in picture.workers])
            feed.publish("shards", _shards(picture))
            feed.publish("devices", self._all_devices(picture))
            feed.publish("sessions", [self._session(meta) for meta in picture.sessions])
        # Last, because it differs every time: who has it has all of this look.
        feed.publish(
            "now",
            {
                "at": round(now, 3),
                "fault": tracker.fault,
                "revoke": self._accounts is not None,
                "sessions": 0 if picture is None else picture.session_count,
                "by_job": {} if picture is None else dict(picture.by_job),
            },
        )

    def _add_rate(self, picture: ClusterSnapshot, now: float) -> None:
        if not self._rates or now - self._rates[-1][0] >= RATE_EVERY_S:
            self._rates.append((now, sum(self._tracker.rate(meta.session) for meta in picture.sessions)))

    async def _look_at_accounts(self, picture: ClusterSnapshot) -> None:
        if self._accounts is not None:
            try:
                async with asyncio.timeout(SLOW_S):
                    accounts = await asyncio.to_thread(self._accounts.list)
                names = [account.name for account in accounts]
                allowed = await self._eyes.ask(lambda _, store: store.allowed(names))
                self._devices = as_devices(accounts, picture.sessions, allowed)
            except (SplitEasyError, TimeoutError) as error:
                log.warning("the list of devices can't be read", error=str(error) or "no answer")
                self._devices = None

    async def _look_at_fleets(self, picture: ClusterSnapshot) -> None:
        """Look at the newest version of each job that has rounds."""
        found = []
        for job, digests in sorted(picture.jobs.items()):
            version = f"{job}@{digests[0]}"
            if version in self._alone:
                continue
            try:
                view = await self._eyes.ask(partial(_rounds_of, version))
            except UserError:
                self._alone.add(version)
            except SplitEasyError as error:
                log.warning("the rounds of a job can't be read", job=job, error=str(error))
            else:
                found.append(fleet_at_a_glance(view))
        self._fleets = found

    async def _look_at_verdicts(self) -> None:
        try:
            self._gate = await asyncio.to_thread(read_verdicts, self._verdicts)
        except UserError as error:
            log.warning("the gate's verdicts can't be read", error=str(error))

    def _all_devices(self, picture: ClusterSnapshot) -> list[dict[str, Any]]:
        """Those with an account, and those that have a session; `enrolled` is null where nobody can tell."""
        known = {each.device: {**asdict(each), "enrolled": True} for each in self._devices or ()}
        for meta in sorted(picture.sessions, key=lambda meta: meta.updated_at):
            job, _, device = meta.session.partition(".")
            before = known.get(device, {})
            known[device] = {
                "device": device,
                "enrolled": None if self._devices is None else before.get("enrolled", False),
                "connected": before.get("connected", False),
                "seen_at": meta.updated_at,
                "version": meta.agent or None,
                "job": job,
                "step": meta.committed,
                "allowed": before.get("allowed"),
            }
        return [known[name] for name in sorted(known)]

    def _session(self, meta: SessionMeta) -> dict[str, Any]:
        tracker = self._tracker
        job, _, device = meta.session.partition(".")
        fault_at, fault = tracker.last_faults.get(meta.session, (None, None))
        link = tracker.link(meta)
        assert tracker.picture is not None
        return {
            "session": meta.session,
            "job": job,
            "device": device,
            "digest": meta.job_digest[:12],
            "step": meta.committed,
            "total_steps": meta.total_steps or None,
            "rate": round(tracker.rate(meta.session), 2),
            "state": "paused" if meta.paused else link.partition(" ")[0],
            "seen_at": meta.updated_at,
            "loss": self._curves.last(meta.session),
            "workers": serving(tracker.picture, meta.session),
            "attempt": meta.attempt.number,
            "log_bytes": meta.log_bytes,
            "fault": fault,
            "fault_at": fault_at,
        }


def _revoke_device(accounts: Accounts, device: str) -> bool:
    """Workers' accounts are not the page's to end."""
    from deploy.accounts import Role

    enrolled = {account.name for account in accounts.list() if account.role is Role.DEVICE}
    return device in enrolled and accounts.revoke(device)


async def _rounds_of(version: str, _: Transport, store: Store) -> FleetView:
    return await read_fleet(store, version, last=ROUNDS)


def _event(at: float, kind: str, subject: str, text: str) -> dict[str, Any]:
    return {"at": round(at, 1), "kind": kind, "subject": subject, "text": text}


def _worker(worker: Any) -> dict[str, Any]:
    return {
        "worker": worker.worker,
        "state": worker.state,
        "host": worker.host,
        "sessions": worker.sessions,
        "shards": list(worker.shards),
        "steps": worker.steps,
        "started_at": worker.started_at,
    }


def _shards(picture: ClusterSnapshot) -> dict[str, Any]:
    def waiting(depth: Any) -> int | None:
        return None if depth is None else depth.messages

    return {
        "front": waiting(picture.front),
        "dead": waiting(picture.dead),
        "shards": [
            {
                "shard": number,
                "waiting": waiting(depth),
                "consumers": 0 if depth is None else depth.consumers,
                "workers": [each.worker for each in picture.workers if number in each.shards],
            }
            for number, depth in enumerate(picture.shards)
        ],
    }
