"""The settings of one device's agent, written by the operator's side and read on the device."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

MARK = "spliteasy: "
"""Begins each line that the device's side answers; what login scripts print has none."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One agent."""

    device: str
    folder: str = ""
    """The folder of the agent. If it is empty: ~/.spliteasy/agents/DEVICE, for root
    /var/lib/spliteasy/agents/DEVICE."""
    data: str = ""
    job: str = ""
    """Empty: as the enrolment says."""
    arguments: tuple[str, ...] = ()
    """Further ones of `spliteasy agent`."""
    extras: tuple[str, ...] = ("agent",)
    pip_options: tuple[str, ...] = ()
    system_site_packages: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    """The environment of the agent, and of pip."""
    memory: str = "80%"
    """The most that the agent may take: bytes with K, M or G, or a share of the device's."""
    service: str = "auto"
    """`systemd`, `supervisor`, or whichever the device has."""
    run_as: str = ""
    """The account that the agent runs as; only root can name another than its own."""
    start_s: float = 120.0
    """A start may take this long."""
    settle_s: float = 5.0
    """The agent has to live this long after it said that it is ready."""
    restart_s: float = 10.0
    """The pause between an end that was not meant and the next start."""
    delete_state: bool = False
    """Removing the agent deletes its state and log too."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        said: dict[str, Any] = json.loads(text)
        return cls(**{name: _as_tuple(value) for name, value in said.items()})


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
