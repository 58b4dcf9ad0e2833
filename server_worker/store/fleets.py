"""The part of the store seam that has a fleet's rounds: records, devices that wait, weights that were handed
in.

A fleet is one version of a job, named `<job>@<digest>`. Its records are a chain that only grows. Weights are
written once under a name and never changed: who writes other ones under that name is told what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

Blob = bytes | bytearray | memoryview


class Fleets(Protocol):
    """Durable state of the fleets in one store."""

    async def rounds(self, fleet: str, *, after: int = -1) -> Sequence[bytes]:
        """Return the records of the rounds after number `after`, in order."""
        ...

    async def newest_round(self, fleet: str) -> bytes | None:
        """Return the record with the highest number; None before the first."""
        ...

    async def append_round(
        self, fleet: str, record: bytes, *, number: int, previous: bytes | None, weights: Sequence[str] = ()
    ) -> bytes | None:
        """Make `record` the one of that number, if the chain ends in `previous` (None: if it is empty) and
        the weights that it names are there: a store that went back may have forgotten them meanwhile.

        Returns what stands at that number then: `record`, or another one that came first. None: the chain is
        another one, and nothing was written.
        """
        ...

    async def put_member(self, fleet: str, device: str, about: bytes) -> None:
        """Keep what is known of a device, in place of what was."""
        ...

    async def members(self, fleet: str, devices: Sequence[str] | None = None) -> Mapping[str, bytes]:
        """Return what `put_member` was given last, by device: of these devices, or of all."""
        ...

    async def put_weights(self, fleet: str, name: str, body: Blob, *, digest: str) -> str:
        """Keep `body` under `name` unless there is one already. Returns the digest of what is kept."""
        ...

    async def weights(self, fleet: str) -> Mapping[str, str]:
        """Return the digests of all weights that are kept, by name."""
        ...

    async def read_weights(self, fleet: str, name: str) -> bytes:
        """Raises KeyError where there are none, or they have just gone."""
        ...

    async def drop_weights(self, fleet: str, names: Sequence[str], *, needs: Sequence[str] = ()) -> None:
        """Delete weights, unless those that they have led to (`needs`) are not there."""
        ...

    async def forget(self, fleet: str) -> bool:
        """Delete all of a fleet; whether there was anything. Its job and its sessions stay."""
        ...
