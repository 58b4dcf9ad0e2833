"""Calls of the store about a fleet's rounds, as records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server_worker.store.base import Blob, Store
from server_worker.store.calls import StoreAction


@dataclass(frozen=True, slots=True)
class ReadClock(StoreAction[float]):
    """The time by the store's own clock."""

    async def call(self, store: Store) -> float:
        return await store.now()


@dataclass(frozen=True, slots=True)
class ReadLossWindow(StoreAction[float]):
    """The time for which the store may still lose what it has written; 0 where it is in memory alone."""

    async def call(self, store: Store) -> float:
        return 0.0 if store.loss_window_s == math.inf else store.loss_window_s


@dataclass(frozen=True, slots=True)
class ReadNewestRound(StoreAction[bytes | None]):
    """The record with the highest number; None before the first."""

    fleet: str

    async def call(self, store: Store) -> bytes | None:
        return await store.fleets.newest_round(self.fleet)


@dataclass(frozen=True, slots=True)
class ReadRounds(StoreAction[Sequence[bytes]]):
    """The records of the rounds after number `after`, in order."""

    fleet: str
    after: int

    async def call(self, store: Store) -> Sequence[bytes]:
        return await store.fleets.rounds(self.fleet, after=self.after)


@dataclass(frozen=True, slots=True)
class AppendRound(StoreAction[bytes | None]):
    """Make `record` the one of that number, if the chain ends in `previous`; what stands there then."""

    fleet: str
    record: bytes
    number: int
    previous: bytes | None
    weights: tuple[str, ...]
    """The weights that the record names: it is made only where they are there."""

    async def call(self, store: Store) -> bytes | None:
        return await store.fleets.append_round(
            self.fleet, self.record, number=self.number, previous=self.previous, weights=self.weights
        )


@dataclass(frozen=True, slots=True)
class ReadMembers(StoreAction[Mapping[str, bytes]]):
    """The devices of the fleet that wait, as they said last: these devices, or all."""

    fleet: str
    devices: tuple[str, ...] | None = None

    async def call(self, store: Store) -> Mapping[str, bytes]:
        return await store.fleets.members(self.fleet, self.devices)


@dataclass(frozen=True, slots=True)
class PutMember(StoreAction[None]):
    """Keep what is known of a device, in place of what was."""

    fleet: str
    device: str
    about: bytes

    async def call(self, store: Store) -> None:
        await store.fleets.put_member(self.fleet, self.device, self.about)


@dataclass(frozen=True, slots=True)
class PutWeights(StoreAction[str]):
    """Keep `body` under `name` unless there is one already; the digest of what is kept."""

    fleet: str
    name: str
    body: Blob
    digest: str

    async def call(self, store: Store) -> str:
        return await store.fleets.put_weights(self.fleet, self.name, self.body, digest=self.digest)


@dataclass(frozen=True, slots=True)
class ReadWeightsOf(StoreAction[bytes | None]):
    """The weights of that name; None where there are none."""

    fleet: str
    name: str

    async def call(self, store: Store) -> bytes | None:
        try:
            return await store.fleets.read_weights(self.fleet, self.name)
        except KeyError:
            return None


@dataclass(frozen=True, slots=True)
class ListWeights(StoreAction[Mapping[str, str]]):
    """The digests of all weights that are kept, by name."""

    fleet: str

    async def call(self, store: Store) -> Mapping[str, str]:
        return await store.fleets.weights(self.fleet)


@dataclass(frozen=True, slots=True)
class DropWeights(StoreAction[None]):
    """Delete the weights of these names, unless those that they have led to are not there."""

    fleet: str
    names: tuple[str, ...]
    needs: tuple[str, ...]

    async def call(self, store: Store) -> None:
        await store.fleets.drop_weights(self.fleet, self.names, needs=self.needs)
