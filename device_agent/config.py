"""An agent's settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from broker.transport.patience import UNREACHABLE_S
from device_agent.training.data import DeviceData


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Settings of one agent. `job` is `name` or `name@digest`; `data` as `load_dataset` takes it."""

    job: str
    device: str
    data: str | DeviceData
    state: Path
    root: Path | None = None
    """The data's module is looked up in this folder; None is the current one."""
    operator_key: str | None = None
    """Public key (64 hexadecimal digits) that must have signed the job; None: it is taken as it comes."""
    refuse_public_ends: bool = False
    """Don't train where initial weights of head or tail are in the job, for the worker to read."""
    stop_if_hijacked: bool = False
    """End the training where a worker seems to train the head for itself; else this is said in the log."""
    secret: bytes | None = field(default=None, repr=False)
    """32 bytes in place of a secret of the device's own, so that a run can be repeated."""
    fleet_key: bytes | None = field(default=None, repr=False)
    """32 bytes that the devices of a fleet share, from which their common initial ends are drawn."""
    takeover: bool = False
    restart: bool = False
    epochs: int | None = None
    """Epochs to train in place of the job's; None: as the job says."""
    new_data: bool = False
    """Go on from the trained weights, although the data is not what the state folder was trained on."""
    new_version: bool = False
    """Go on from the trained weights with the version of the job that `job` names."""
    reply_timeout_s: float = 10.0
    chunk_bytes: int | None = None
    """Payload of one frame; None: as the job says."""
    max_uplink: float | None = None
    """Bytes a second that may be sent at most."""
    metered: int | None = None
    """Bytes a day that may be sent and received together; no step begins beyond them."""
    patience_s: float = UNREACHABLE_S
    """The first connection may take this long."""
    give_up_s: float | None = None
    """Each later connection may take this long; None waits without end."""
