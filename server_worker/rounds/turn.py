"""A device's turn at the end of a round, without I/O: it hands in, waits, and goes on from the mean.

Everything is in the store: what devices handed in, and the chain of records. So any worker can close a round,
and take its mean again to the same bits. A record is acted on once the store can't lose it any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

from torch import Tensor

from broker import encode
from broker.protocol import messages as m
from server_worker.engine.local import BodyTrainer, RoundAbout
from server_worker.rounds.decision import Members, next_record, wanted
from server_worker.rounds.ends import SEALED, contribution, digest_of_contribution
from server_worker.session.actions import Action, Compute, Result, StoreCall
from server_worker.session.refusals import error_reply
from server_worker.store import Blob, Store
from spliteasy.errors import DataError, StoreError, StoreUnavailable
from spliteasy.fleet.mean import weighted_mean
from spliteasy.fleet.record import HandedIn, Member, RoundRecord
from spliteasy.fleet.sealed import added_up
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes

LEAST_WAIT_S, MOST_WAIT_S = 0.05, 5.0
"""A device asks again after a tenth of the time that the round has lasted, within these limits."""
GRACE_S = 10.0
"""A worker lets no deadline pass that it has not watched for so long (or a quarter of it, if that is
shorter): after an outage devices get the time to come back."""

JOINING = "waiting for the round to begin"
HANDED_IN = "waiting for the other devices of the round"
SETTLING = "waiting until the end of the round is durable"


@dataclass(frozen=True, slots=True)
class Turn:
    """The device may go on from this mean; empty bytes stand for the initial model."""

    about: RoundAbout
    mean: bytes

    def logged(self, request: m.Ready) -> tuple[Blob, ...]:
        """Return what the log keeps of the step: it does not need the ends that were handed in."""
        return encode(request.model_copy(update={"values": (), "names": ()})), self.about.to_json(), self.mean


Outcome = Turn | m.Busy | m.Error


class RoundTurns:
    """The rounds of one session, as this worker has seen them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.request: m.Ready | None = None
        """The request that waits for the round's end; its values go once they are in the store."""
        self._clock = clock
        self._handed: HandedIn | None = None
        """The hand-in of `request`, once it is in the store."""
        self._seen: tuple[str, float] = "", 0.0
        """The newest record, and since when this worker knows it."""

    def begin(self, request: m.Ready) -> None:
        """Note that the device is ready. The same request again changes nothing."""
        if self.request is None or self.request.request != request.request:
            self.request, self._handed = request, None

    def clear(self) -> None:
        self.request, self._handed = None, None

    def take(self, memory: BodyTrainer) -> Generator[Action, Result, Outcome]:
        """Return the answer to the device that waits, as things stand now. Raises DataError, StoreError."""
        request, fleet = self.request, fleet_of(memory)
        assert request is not None
        newest = parsed((yield StoreCall(lambda s: s.fleets.newest_round(fleet))))
        now: float = yield StoreCall(lambda s: s.now())
        if newest is not None and newest.fleet_key != request.fleet_key:
            return wrong_key_reply(request)
        if request.round != memory.round:
            raise DataError(
                f"the device hands in for round {request.round}, its session is in {memory.round}"
            )
        if request.round > (0 if newest is None else newest.number + 1):
            raise StoreError(f"the store has lost the record of round {request.round - 1} of fleet {fleet}")
        if newest is not None and request.round == newest.number + 1:
            yield from self._hand_in(memory, fleet)
        member = Member(
            seen=now, done=request.last, fleet_key=request.fleet_key, round=request.round, handed=self._handed
        )
        yield StoreCall(lambda s: s.fleets.put_member(fleet, request.device, member.to_json()))
        newest = yield from self._close_if_due(memory, newest, fleet, now)
        return (yield from self._answer(memory, newest, fleet, now))

    def _answer(
        self, memory: BodyTrainer, newest: RoundRecord | None, fleet: str, now: float
    ) -> Generator[Action, Result, Outcome]:
        request = self.request
        assert request is not None
        if newest is None:
            few = f"{JOINING}: {wanted(memory.job.spec.fleet)} devices have to be there"
            return m.Busy(answers=request.request, retry_after_s=LEAST_WAIT_S, reason=few)
        wait_s = min(MOST_WAIT_S, max(LEAST_WAIT_S, (now - newest.closed_at) / 10))
        if newest.number < request.round:
            return m.Busy(answers=request.request, retry_after_s=wait_s, reason=HANDED_IN)
        if not request.last and request.device not in newest.cohort:
            return m.Busy(answers=request.request, retry_after_s=wait_s, reason=JOINING)
        window_s: float = yield StoreCall(loss_window)
        if now - newest.closed_at < window_s:
            return m.Busy(answers=request.request, retry_after_s=LEAST_WAIT_S, reason=SETTLING)
        mean = yield from mean_of(newest.base, fleet)
        sealed = None
        if mean and memory.job.spec.fleet.seals:
            sealed = sealed_sum(newest if not newest.void else (yield from record_of(newest.base, fleet)))
        about = RoundAbout(round=newest.number, record=newest.digest, drawn=len(newest.cohort), sealed=sealed)
        return Turn(about, mean)

    def _hand_in(self, memory: BodyTrainer, fleet: str) -> Generator[Action, Result, None]:
        """Put what the device has trained into the store, once. The first that is there stands."""
        request, spec = self.request, memory.job.spec
        if request is None or self._handed is not None:
            return
        most = spec.fleet.most_weight(spec.batch_size) if spec.fleet.seals else spec.fleet.max_samples
        if spec.fleet.weights == "equal":
            most = spec.fleet.max_samples
        if request.samples != memory.samples:
            raise DataError(
                f"the device says that it trained on {request.samples} samples in the round, and it was "
                f"{memory.samples}"
            )
        if most is not None and memory.samples > most:
            raise DataError(
                f"the device trained on {memory.samples} samples in the round, and the job takes {most}",
                hint="raise fleet.max_samples in the job",
            )
        body: bytes = yield Compute(lambda: contribution(memory, request))
        digest, name = digest_of_contribution(body), weights_name(request.round, request.device)
        kept = yield StoreCall(lambda s: s.fleets.put_weights(fleet, name, body, digest=digest))
        handed = HandedIn(
            samples=memory.samples,
            first=memory.round_began,
            last=memory.trainer.taken,
            digest=digest,
            nonce=request.nonce,
        )
        if kept != digest:  # of a life that the device has forgotten
            members = yield from read_members(fleet)
            before = members.get(request.device)
            if before is not None and before.round == request.round and before.handed is not None:
                handed = before.handed
            else:
                yield StoreCall(lambda s: s.fleets.drop_weights(fleet, [name]))
                yield StoreCall(lambda s: s.fleets.put_weights(fleet, name, body, digest=digest))
        self._handed = handed
        self.request = request.model_copy(update={"values": (), "names": ()})

    def _close_if_due(
        self, memory: BodyTrainer, newest: RoundRecord | None, fleet: str, now: float
    ) -> Generator[Action, Result, RoundRecord | None]:
        """Write the record that is due, if one is; the newest record then."""
        spec, members = memory.job.spec, (yield from read_members(fleet))
        due = next_record(
            newest, members, spec.fleet, seed=spec.seed, now=now, may_expire=self._watched(newest, memory)
        )
        if due is None:
            return newest
        if newest is not None and newest.base:
            # While all that it is taken from is there.
            before = yield from mean_of(newest.base, fleet)
            due = due.model_copy(update={"mean_before": digest_of_contribution(before)})
        line, previous = due.to_json(), None if newest is None else newest.to_json()
        found = yield StoreCall(
            lambda s: s.fleets.append_round(fleet, line, number=due.number, previous=previous)
        )
        if found is None:
            raise StoreUnavailable(f"fleet {fleet}: the records have changed meanwhile")
        if found == line:
            oldest = due.number, newest.base if newest is not None else 0
            yield from drop_older(fleet, *oldest)
        return RoundRecord.from_json(found)

    def _watched(self, newest: RoundRecord | None, memory: BodyTrainer) -> bool:
        """Return whether this worker knows the newest record for long enough to let its deadline pass."""
        digest, now = "" if newest is None else newest.digest, self._clock()
        if self._seen[0] != digest:
            self._seen = digest, now
        return now - self._seen[1] >= min(GRACE_S, memory.job.spec.fleet.deadline_s / 4)


def fleet_of(memory: BodyTrainer) -> str:
    """Return the name of the session's fleet in the store."""
    return f"{memory.job.name}@{memory.job.digest}"


def weights_name(number: int, device: str) -> str:
    """Return the name of what a device handed in for a round."""
    return f"{number}/{device}"


def mean_name(number: int) -> str:
    return f"{number}/"


def parsed(line: bytes | None) -> RoundRecord | None:
    """Return the record that the store has, if it has one."""
    return None if line is None else RoundRecord.from_json(line)


def read_members(fleet: str) -> Generator[Action, Result, Members]:
    """Return what is known of the fleet's devices."""
    found = yield StoreCall(lambda s: s.fleets.members(fleet))
    return {device: Member.from_json(about) for device, about in found.items()}


async def loss_window(store: Store) -> float:
    """Return how long the store may still lose what it has written; 0 where that never ends, as in memory."""
    return 0.0 if store.loss_window_s == math.inf else store.loss_window_s


def mean_of(number: int, fleet: str) -> Generator[Action, Result, bytes]:
    """Return the mean of a round as bytes, taken if nobody has yet; empty for round 0.

    It is a pure function of the weights that the round's record names. Raises StoreUnavailable where a
    worker that is further has dropped them meanwhile.
    """
    if number == 0:
        return b""
    kept = yield StoreCall(lambda s: read_weights(s, fleet, mean_name(number)))
    if kept is not None:
        return bytes(kept)
    record = yield from record_of(number, fleet)
    bodies: dict[str, bytes] = {}
    for device in record.participants:
        body = yield StoreCall(lambda s, device=device: read_weights(s, fleet, weights_name(number, device)))  # type: ignore[misc]
        if body is None:
            raise StoreUnavailable(f"fleet {fleet}: the weights of round {number} have just gone")
        bodies[device] = body
    mean: bytes = yield Compute(lambda: mean_bytes(record, bodies))
    digest = digest_of_contribution(mean)
    first = yield StoreCall(lambda s: s.fleets.put_weights(fleet, mean_name(number), mean, digest=digest))
    if first != digest:
        raise StoreError(
            f"fleet {fleet}: two workers have taken unlike means of round {number}: {first[:12]} and "
            f"{digest[:12]}"
        )
    return mean


def record_of(number: int, fleet: str) -> Generator[Action, Result, RoundRecord]:
    """Return the record of a round. Raises StoreUnavailable where the store has lost it meanwhile."""
    records = yield StoreCall(lambda s: s.fleets.rounds(fleet, after=number - 1))
    if not records:
        raise StoreUnavailable(f"fleet {fleet}: the record of round {number} has just gone")
    return RoundRecord.from_json(records[0])


def sealed_sum(record: RoundRecord) -> m.SealedSum:
    """Return the devices whose sealed ends the sum of that round has."""
    addends = [
        m.SealedAddend(device=device, nonce=handed.nonce or "", weight=record.weights[device])
        for device, handed in record.participants.items()
    ]
    return m.SealedSum(round=record.number, drawn=record.drawn, addends=tuple(addends))


async def read_weights(store: Store, fleet: str, name: str) -> bytes | None:
    """Return the weights of that name; None where there are none."""
    try:
        return await store.fleets.read_weights(fleet, name)
    except KeyError:
        return None


def mean_bytes(record: RoundRecord, bodies: dict[str, bytes]) -> bytes:
    """Return the mean of what the record's participants handed in. Raises StoreError where it is something
    else.
    """
    parts, sealed = {}, list[Tensor]()
    for device, handed in record.participants.items():
        if digest_of_contribution(bodies[device]) != handed.digest:
            raise StoreError(
                f"what {device} handed in for round {record.number} is not what the record names"
            )
        tensors = tensors_from_bytes(bodies[device])
        if SEALED in tensors:
            sealed.append(tensors.pop(SEALED))
        parts[device] = record.weights[device], tensors
    mean = weighted_mean(parts)
    if sealed:
        mean[SEALED] = added_up(sealed)
    return tensors_to_bytes(mean)


def drop_older(fleet: str, number: int, base: int) -> Generator[Action, Result, None]:
    """Drop what was handed in before round `number`, and the means before that of round `base`."""
    names = yield StoreCall(lambda s: s.fleets.weights(fleet))
    doomed = []
    for name in names:
        round_, _, device = name.partition("/")
        if int(round_) < (number if device else base):
            doomed.append(name)
    if doomed:
        yield StoreCall(lambda s: s.fleets.drop_weights(fleet, doomed))


def wrong_key_reply(request: m.Ready) -> m.Error:
    """Refuse a device whose initial ends are not those of the others."""
    return error_reply(
        request,
        "not-allowed",
        "this device has another fleet key than the others, so that their models can't be averaged",
        "give the key file that the others have: --fleet-key FILE",
    )
