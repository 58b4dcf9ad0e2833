"""Tell the service manager that started us how we are (as `sd_notify(3)` does), if there is one."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from device_agent.observations import Observation, StateChanged

VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """An observer: the first state that an agent tells means that it has started."""

    def __init__(self) -> None:
        """Takes the address out of the environment, so that no child tells in our name."""
        address = os.environ.pop(VARIABLE, "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address

    def __call__(self, observation: Observation) -> None:
        """A manager that is gone is none of our business."""
        if not self._address or not isinstance(observation, StateChanged):
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.setblocking(False)
            told.sendto(f"READY=1\nSTATUS={observation.text[:200]}".encode(), self._address)
