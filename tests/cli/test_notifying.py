"""An agent tells the service manager that started it how it is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from device_agent.observations import Evaluated, StateChanged
from spliteasy_cli.support.service_notifier import VARIABLE, Notifier

CONNECTED = StateChanged(device="phone-1", text="connected")


def test_the_manager_hears_of_states_only_and_children_do_not_know_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv(VARIABLE, address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.setblocking(False)
        notify = Notifier()
        assert VARIABLE not in os.environ
        notify(Evaluated(device="phone-1", step=1, samples=2, loss=0.5, accuracy=None))
        notify(CONNECTED)
        assert manager.recv(1000) == b"READY=1\nSTATUS=connected"
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
    notify(CONNECTED)  # the manager is gone: nobody minds


def test_without_a_manager_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("a socket was opened"))
    Notifier()(CONNECTED)
