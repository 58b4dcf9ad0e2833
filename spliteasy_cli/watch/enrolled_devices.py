"""The enrolled devices, each with the session that it trained last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.accounts import Account
    from server_worker.store import SessionMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One line of the list. `seen_at` is in Unix seconds, or None for a device that never trained."""

    device: str
    connected: bool
    seen_at: float | None
    version: str | None
    """The version that its agent reports."""
    job: str | None
    step: int | None
    allowed: tuple[str, ...] | None
    """The jobs that it may train, or None for any job."""


def devices_of(accounts: Sequence[Account], after: str = "") -> list[Account]:
    """Return the accounts of devices whose names come after `after`, by name."""
    from deploy.accounts import Role

    found = (each for each in accounts if each.role is Role.DEVICE and each.name > after)
    return sorted(found, key=lambda account: account.name)


def as_devices(
    accounts: Sequence[Account], sessions: Sequence[SessionMeta], allowed: Mapping[str, tuple[str, ...]]
) -> list[Device]:
    """Return every enrolled device with the one of its sessions that changed last."""
    from deploy.accounts import Role

    newest: dict[str, SessionMeta] = {}
    for meta in sorted(sessions, key=lambda meta: meta.updated_at):
        newest[meta.session.partition(".")[2]] = meta
    return [
        Device(
            device=account.name,
            connected=account.connections > 0,
            seen_at=meta.updated_at if meta else None,
            version=meta.agent or None if meta else None,
            job=meta.session.partition(".")[0] if meta else None,
            step=meta.committed if meta else None,
            allowed=allowed.get(account.name),
        )
        for account in accounts
        if account.role is Role.DEVICE
        for meta in [newest.get(account.name)]
    ]
