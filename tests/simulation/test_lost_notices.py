"""What a worker tells the devices that wait may be lost, or be wrong: they ask by themselves."""

from __future__ import annotations

from unittest import mock

import pytest

from server_worker.rounds.waiting import WaitingDevice
from server_worker.rounds.watch import RoundWatch
from tests.simulation import toy
from tests.simulation.faults import CALM
from tests.simulation.run import play
from tests.simulation.test_fleet import FREQUENT

FLEETS = {"rounds": toy.PLAIN_FLEET, "windows": toy.PLAIN_SHARED, "turns": toy.PLAIN_RELAY}


@pytest.mark.parametrize("variant", FLEETS.values(), ids=FLEETS)
def test_devices_that_are_never_told_ask(variant: toy.Variant) -> None:
    def lost(self: RoundWatch, device: WaitingDevice, known: int) -> None:
        """Tell nobody."""

    with mock.patch.object(RoundWatch, "wait", lost):
        assert play(0, rates=CALM, variant=variant, devices=toy.FLEET).violations == ()


@pytest.mark.parametrize("variant", FLEETS.values(), ids=FLEETS)
def test_devices_that_are_told_in_vain_wait_on(variant: toy.Variant) -> None:
    def at_once(self: RoundWatch, device: WaitingDevice, known: int) -> None:
        """Wake the session, whether its round has ended or not."""
        self._wake(device.session)

    def once_a_record(self: RoundWatch, device: WaitingDevice, known: int) -> None:
        told: set[tuple[str, int]] = self.__dict__.setdefault("_told_in_vain", set())
        if (device.session, known) not in told:
            told.add((device.session, known))
            at_once(self, device, known)

    with mock.patch.object(RoundWatch, "wait", once_a_record):
        for rates in (CALM, FREQUENT):
            assert play(1, rates=rates, variant=variant, devices=toy.FLEET).violations == ()
