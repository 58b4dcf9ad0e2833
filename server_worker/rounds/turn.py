"""A device's turn at the end of a round, without I/O: it hands in, waits, and goes on from the mean.

Everything is in the store: what devices handed in, and the chain of records. So any worker can close a round,
and take its mean again to the same bits. A record is acted on once the store can't lose it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from broker import encode
from broker.protocol import messages as m
from server_worker.action import Steps
from server_worker.engine.base import HandIn, TakeEnds, TakeMean
from server_worker.replica.loaded_body import LoadedBody, RoundAbout
from server_worker.rounds.actions import AwaitRound, BeAlone
from server_worker.rounds.decision import Members, next_record
from server_worker.rounds.ends import digest_of_contribution
from server_worker.rounds.waiting import SETTLING, SOON_S, WaitingDevice, busy
from server_worker.session.refusals import error_reply
from server_worker.store import Blob
from server_worker.store.fleet_calls import (
    AppendRound,
    DropWeights,
    ListWeights,
    PutMember,
    PutWeights,
    ReadClock,
    ReadLossWindow,
    ReadMembers,
    ReadNewestRound,
    ReadRounds,
    ReadWeightsOf,
)
from spliteasy.errors import DataError, StoreError, StoreUnavailable
from spliteasy.fleet.record import HandedIn, Member, RoundRecord
from spliteasy.job.spec import FleetSpec

ENDS = "=ends"
"""Names the mean of the ends, beside what devices handed in: no device has a name like it."""
GRACE_S = 10.0
"""A worker lets no deadline pass that it has not watched for so long (or a quarter of it, if that is
shorter): after an outage devices get the time to come back."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The device may go on from this mean; empty bytes stand for the initial model."""

    about: RoundAbout
    mean: bytes
    ends: bytes = b""
    """The mean of the ends, where it is not in `mean`: those of a shared body are of another round."""

    def logged(self, request: m.Ready) -> tuple[Blob, ...]:
        """Return what the log keeps of the step: it does not need the ends that were handed in."""
        asked = encode(request.model_copy(update={"values": (), "names": ()}))
        return asked, self.about.to_json(), self.mean, self.ends


Outcome = Turn | m.Busy | m.Error


class RoundTurns:
    """The rounds of one session, as this worker has seen them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.request: m.Ready | None = None
        """The request that waits for the round's end; its values go once they are in the store."""
        self._clock = clock
        self._handed: HandedIn | None = None
        """The hand-in of `request`, once it is in the store."""
        self._since: float | None = None
        """When the device began to ask for what `request` asks for."""
        self._seen: tuple[str, float] = "", 0.0
        """The newest record, and since when this worker knows it."""

    def begin(self, request: m.Ready) -> None:
        """Note that the device is ready. The same request again changes nothing."""
        if self.request is None or self.request.request != request.request:
            self.clear()
            self.request = request

    def clear(self) -> None:
        self.request, self._handed, self._since = None, None, None

    def take(self, loaded: LoadedBody, *, asked: bool = True) -> Steps[Outcome]:
        """Return the answer to the device that waits, as things stand now. Raises DataError, StoreError.

        Where the device has not `asked` again, what is known of it stays as it is, and no round is closed.
        """
        request, fleet = self.request, fleet_of(loaded)
        assert request is not None
        newest = parsed((yield from ReadNewestRound(fleet)))
        now = yield from ReadClock()
        if newest is not None and newest.fleet_key != request.fleet_key:
            return wrong_key_reply(request)
        if request.round != loaded.round:
            raise DataError(
                f"the device hands in for round {request.round}, its session is in {loaded.round}"
            )
        if request.round > (0 if newest is None else newest.number + 1):
            raise StoreError(f"the store has lost the record of round {request.round - 1} of fleet {fleet}")
        if asked:
            if newest is not None and request.round == newest.number + 1:
                yield from self._hand_in(loaded, fleet)
            yield from self._put_member(request, fleet, now)
            newest = yield from self._close_if_due(loaded, newest, fleet, now)
        return (yield from self._answer(loaded, newest, fleet, now))

    def _put_member(self, request: m.Ready, fleet: str, now: float) -> Steps[None]:
        """Keep that the device waits, and what it has handed in."""
        self._since = now if self._since is None else self._since
        member = Member(
            seen=now,
            since=self._since,
            done=request.last,
            accuracy=request.accuracy,
            fleet_key=request.fleet_key,
            round=request.round,
            handed=self._handed,
        )
        yield from PutMember(fleet, request.device, member.to_json())

    def _answer(
        self, loaded: LoadedBody, newest: RoundRecord | None, fleet: str, now: float
    ) -> Steps[Outcome]:
        request, spec = self.request, loaded.job.spec.fleet
        assert request is not None
        waiting = WaitingDevice(
            fleet=fleet,
            session=request.session,
            device=request.device,
            round=request.round,
            last=request.last,
            opened=loaded.opened,
            spec=spec,
        )
        why = waiting.why(newest)
        if newest is None or why is not None:
            yield from AwaitRound(waiting, -1 if newest is None else newest.number)
            return busy(request, why or "", waiting.asks_after_s(newest, now))
        window_s = yield from ReadLossWindow()
        settled_s = min(now - newest.closed_at, self._known_s(newest))
        if settled_s < window_s:
            return busy(request, SETTLING, max(SOON_S, window_s - settled_s))
        mean = yield from mean_of(newest.base, loaded)
        ends_base = newest.ends_base if spec.shares_body else newest.base
        goes_on = loaded.round > 0 and newest.opened == loaded.opened
        keeps_ends = spec.shares_body and (goes_on or not spec.ends_leave)
        ends = b""
        if spec.shares_body and not keeps_ends:
            ends = yield from ends_of(ends_base, loaded)
        if request.device == min(newest.cohort, default=request.device):  # one does it for all
            if spec.shares_body and newest.opened == newest.number:
                yield from ends_of(ends_base, loaded)  # while all that it is taken from is there
            # Only now: had the store lost the record, the means before it would have to be taken again.
            yield from drop_older(fleet, newest)
        sealed = None
        if ends_base and spec.seals and not keeps_ends:
            own = newest if newest.number == ends_base else (yield from record_of(ends_base, fleet))
            sealed = sealed_sum(own, spec)
        about = RoundAbout(
            round=newest.number,
            opened=newest.opened,
            record=newest.digest,
            drawn=newest.drawn_for_next,
            sealed=sealed,
            scheduled=newest.steps if spec.hands_over or spec.shares_body else None,
            ends="kept" if keeps_ends else "mean" if ends_base else "initial",
        )
        return Turn(about, mean, ends)

    def _hand_in(self, loaded: LoadedBody, fleet: str) -> Steps[None]:
        """Put what the device has trained into the store, once.

        An earlier life of the device may have handed in something else. Both stay, each under its digest: a
        record may name either.
        """
        request, spec = self.request, loaded.job.spec
        if request is None or self._handed is not None:
            return
        most = spec.fleet.most_weight(spec.batch_size) if spec.fleet.seals_sums else spec.fleet.max_samples
        if spec.fleet.weights == "equal":
            most = spec.fleet.max_samples
        if request.samples != loaded.samples:
            raise DataError(
                f"the device says that it trained on {request.samples} samples in the round, and it was "
                f"{loaded.samples}"
            )
        if most is not None and loaded.round_samples > most:
            raise DataError(
                f"the device trained on {loaded.round_samples} samples in the round, and the job takes "
                f"{most}",
                hint="raise fleet.max_samples in the job",
            )
        body = yield from HandIn(loaded.body, request)
        digest = digest_of_contribution(body)
        yield from PutWeights(fleet, weights_name(request.round, request.device, digest), body, digest)
        self._handed = HandedIn(
            samples=loaded.samples,
            round_samples=loaded.round_samples,
            whole=request.whole,
            first=loaded.round_began,
            last=loaded.taken,
            digest=digest,
            nonce=request.nonce,
        )
        self.request = request.model_copy(update={"values": (), "names": ()})

    def _close_if_due(
        self, loaded: LoadedBody, newest: RoundRecord | None, fleet: str, now: float
    ) -> Steps[RoundRecord | None]:
        """Write the record that is due, if one is; the newest record then.

        A poll reads the devices of the round alone, and all that are there only where a record may be due.
        """
        spec, may_expire = loaded.job.spec, self._watched(newest, loaded)
        if newest is not None and newest.cohort:
            expired = may_expire and now - newest.closed_at >= spec.fleet.deadline_s
            if not expired and not (yield from self._all_handed_in(newest, fleet)):
                return newest
        yield from BeAlone(fleet)
        found = parsed((yield from ReadNewestRound(fleet)))
        if found != newest:
            return found  # another session has closed it meanwhile
        number = 0 if newest is None else newest.number + 1
        members = yield from self._with_weights((yield from read_members(fleet)), number, fleet)
        due = next_record(newest, members, spec.fleet, seed=spec.seed, now=now, may_expire=may_expire)
        if due is None:
            return newest
        if newest is not None and newest.base:
            # While all that it is taken from is there.
            before = yield from mean_of(newest.base, loaded)
            due = due.model_copy(update={"mean_before": digest_of_contribution(before)})
        line, previous = due.to_json(), None if newest is None else newest.to_json()
        named = [weights_name(due.number, name, each.digest) for name, each in due.participants.items()]
        if newest is not None and newest.base:
            named.append(mean_name(newest.base))
        written = yield from AppendRound(fleet, line, due.number, previous, tuple(named))
        if written is None:
            raise StoreUnavailable(f"fleet {fleet}: the records have changed meanwhile")
        return RoundRecord.from_json(written)

    def _with_weights(self, members: Members, number: int, fleet: str) -> Steps[Members]:
        """Return the devices, and what they handed in for round `number` where the store still has it: one
        that went back may have forgotten weights, and a device may say again that it handed them in. What was
        handed in for an earlier round may have been dropped, and counts for nothing.

        Raises StoreUnavailable where these are this device's own: it is asked for them again.
        """
        names, request = (yield from ListWeights(fleet)), self.request

        def lost(device: str, member: Member) -> bool:
            handed = member.handed
            if handed is None or member.round != number:
                return False
            return weights_name(number, device, handed.digest) not in names

        gone = {device for device, member in members.items() if lost(device, member)}
        if request is not None and request.device in gone and self._handed is not None:
            self.clear()
            raise StoreUnavailable(f"fleet {fleet}: the store has forgotten what {request.device} handed in")
        return {
            device: member.model_copy(update={"handed": None}) if device in gone else member
            for device, member in members.items()
        }

    def _all_handed_in(self, newest: RoundRecord, fleet: str) -> Steps[bool]:
        """Return whether all devices of the round have handed in: only their own requests can change that."""
        request = self.request
        if request is None or request.device not in newest.cohort or request.round != newest.number + 1:
            return False
        members = yield from read_members(fleet, newest.cohort)
        return len(members) == len(newest.cohort) and all(
            each.round == newest.number + 1 and each.handed is not None for each in members.values()
        )

    def _watched(self, newest: RoundRecord | None, loaded: LoadedBody) -> bool:
        """Return whether this worker knows the newest record for long enough to let its deadline pass."""
        return self._known_s(newest) >= min(GRACE_S, loaded.job.spec.fleet.deadline_s / 4)

    def _known_s(self, newest: RoundRecord | None) -> float:
        """Return for how many seconds this worker has known the newest record."""
        digest, now = "" if newest is None else newest.digest, self._clock()
        if self._seen[0] != digest:
            self._seen = digest, now
        return now - self._seen[1]


def fleet_of(loaded: LoadedBody) -> str:
    """Return the name of the session's fleet in the store."""
    return f"{loaded.job.name}@{loaded.job.digest}"


def weights_name(number: int, device: str, digest: str) -> str:
    """Return the name of what a device handed in for a round."""
    return f"{number}/{device}/{digest}"


def mean_name(number: int) -> str:
    return f"{number}/"


def ends_name(number: int) -> str:
    return f"{number}/{ENDS}"


def parsed(line: bytes | None) -> RoundRecord | None:
    """Return the record that the store has, if it has one."""
    return None if line is None else RoundRecord.from_json(line)


def read_members(fleet: str, devices: tuple[str, ...] | None = None) -> Steps[Members]:
    """Return what is known of these devices of the fleet, or of all."""
    found = yield from ReadMembers(fleet, devices)
    return {device: Member.from_json(about) for device, about in found.items()}


def mean_of(number: int, loaded: LoadedBody) -> Steps[bytes]:
    """Return the mean of a round as bytes, taken if nobody has yet; empty for round 0.

    It is a pure function of the weights that the round's record names. Raises StoreUnavailable where a
    worker that is further has dropped them meanwhile.
    """
    if number == 0:
        return b""
    fleet = fleet_of(loaded)
    kept = yield from _kept_mean(fleet, mean_name(number))
    if kept is not None:
        return kept
    record = yield from record_of(number, fleet)
    before = b""
    if loaded.job.spec.fleet.shares_body:
        before = yield from mean_of((yield from record_of(number - 1, fleet)).base, loaded)
    named = {device: (number, each.digest) for device, each in record.participants.items()}
    bodies = yield from _handed_in(fleet, named)
    mean = yield from TakeMean(loaded.job, record, bodies, before)
    return (yield from _kept(fleet, mean_name(number), mean))


def _kept_mean(fleet: str, name: str) -> Steps[bytes | None]:
    """Return a mean that was taken before; None: this session is the one of its worker to take it."""
    kept = yield from ReadWeightsOf(fleet, name)
    if kept is None:
        yield from BeAlone(fleet)
        kept = yield from ReadWeightsOf(fleet, name)
    return kept


def ends_of(number: int, loaded: LoadedBody) -> Steps[bytes]:
    """Return the mean of the ends of the round that a record ended, where the body is shared; empty for
    record 0. Raises StoreUnavailable as `mean_of` does.
    """
    if number == 0:
        return b""
    fleet = fleet_of(loaded)
    kept = yield from _kept_mean(fleet, ends_name(number))
    if kept is not None:
        return kept
    record = yield from record_of(number, fleet)
    named = {device: (each.window, each.digest) for device, each in record.ended.items()}
    bodies = yield from _handed_in(fleet, named)
    mean = yield from TakeEnds(loaded.job, record, bodies)
    return (yield from _kept(fleet, ends_name(number), mean))


def _handed_in(fleet: str, named: Mapping[str, tuple[int, str]]) -> Steps[dict[str, bytes]]:
    """Return what each device handed in, by round and digest. Raises StoreUnavailable where it has gone."""
    bodies: dict[str, bytes] = {}
    for device, (number, digest) in named.items():
        body = yield from ReadWeightsOf(fleet, weights_name(number, device, digest))
        if body is None:
            raise StoreUnavailable(f"fleet {fleet}: the weights of round {number} have just gone")
        bodies[device] = body
    return bodies


def _kept(fleet: str, name: str, mean: bytes) -> Steps[bytes]:
    """Keep a mean. Raises StoreError where another one stands there: it is a pure function."""
    digest = digest_of_contribution(mean)
    first = yield from PutWeights(fleet, name, mean, digest)
    if first != digest:
        raise StoreError(
            f"fleet {fleet}: two workers have taken unlike means {name}: {first[:12]} and {digest[:12]}"
        )
    return mean


def record_of(number: int, fleet: str) -> Steps[RoundRecord]:
    """Return the record of a round. Raises StoreUnavailable where the store has lost it meanwhile."""
    records = yield from ReadRounds(fleet, number - 1)
    if not records:
        raise StoreUnavailable(f"fleet {fleet}: the record of round {number} has just gone")
    return RoundRecord.from_json(records[0])


def sealed_sum(record: RoundRecord, fleet: FleetSpec) -> m.SealedSum:
    """Return the devices whose sealed ends the sum of that round has."""
    if fleet.shares_body:
        addends = [
            m.SealedAddend(device=device, nonce=each.nonce or "", weight=fleet.weight_of(each.samples))
            for device, each in record.ended.items()
        ]
    else:
        addends = [
            m.SealedAddend(device=device, nonce=handed.nonce or "", weight=record.weights[device])
            for device, handed in record.participants.items()
        ]
    return m.SealedSum(round=record.began + 1, drawn=record.drawn, addends=tuple(addends))


def drop_older(fleet: str, newest: RoundRecord) -> Steps[None]:
    """Drop what nobody needs any more once the newest record can't be lost: what was handed in before it or,
    where the body is shared, before the round under way, and the means before those that all go on from.
    """
    names = yield from ListWeights(fleet)
    doomed = []
    for name in names:
        number, _, what = name.partition("/")
        needed_from = {"": newest.base, ENDS: newest.ends_base}.get(what, newest.opened)
        if int(number) < needed_from:
            doomed.append(name)
    needs = [mean_name(newest.base)] if newest.base else []
    needs += [ends_name(newest.ends_base)] if newest.ends_base else []
    if doomed:
        yield from DropWeights(fleet, tuple(doomed), tuple(needs))


def wrong_key_reply(request: m.Ready) -> m.Error:
    """Refuse a device whose initial ends are not those of the others."""
    return error_reply(
        request,
        "not-allowed",
        "this device has another fleet key than the others, so that their models can't be averaged",
        "give the key file that the others have: --fleet-key FILE",
    )
