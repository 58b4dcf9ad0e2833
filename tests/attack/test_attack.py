"""Every attack, and that the judge sees one that nothing stops or that harms others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.attack.__main__ import ATTACKS
from tests.attack.arena import Arena, open_arena
from tests.attack.hostile import Hostile
from tests.attack.on_the_broker import publish_to_a_queue
from tests.attack.on_the_device import certificate, intercept
from tests.attack.play import Verdict, play
from tests.fixtures_rabbitmq import RabbitBroker

pytestmark = pytest.mark.rabbitmq


@pytest.fixture
async def arena(rabbitmq_broker: RabbitBroker, rabbitmq_vhost: str, tmp_path: Path) -> AsyncIterator[Arena]:
    async with open_arena(rabbitmq_broker.node, rabbitmq_vhost, tmp_path) as arena:
        yield arena


async def test_every_attack_is_stopped_and_harms_nobody(arena: Arena) -> None:
    verdicts: list[Verdict] = []
    await play(arena, ATTACKS, verdicts.append)
    assert [verdict for verdict in verdicts if verdict.violations] == []
    assert len(verdicts) == len(ATTACKS)
    assert all(verdict.stopped_by and verdict.effect.startswith("none") for verdict in verdicts)


async def test_an_account_with_too_many_permissions_is_found_out(
    arena: Arena, rabbitmq_broker: RabbitBroker
) -> None:
    async def with_more_permissions(attacker: Hostile) -> str:
        rabbitmq_broker.permit(arena.vhost, attacker.name)
        return await publish_to_a_queue(attacker)

    verdicts: list[Verdict] = []
    assert await play(arena, [with_more_permissions, publish_to_a_queue], verdicts.append) == 1
    assert [verdict.stopped_by != "" for verdict in verdicts] == [False, True]


async def test_a_certificate_that_devices_trust_would_let_somebody_in(arena: Arena) -> None:
    """The certificate alone stops an attacker who stands in the middle."""

    async def show_the_right_certificate(attacker: Hostile) -> str:
        return await intercept(attacker, certificate(attacker, "authority"))

    assert await play(arena, [show_the_right_certificate], lambda _: None) == 1


async def test_harm_to_another_device_is_found_out(arena: Arena) -> None:
    async def revoke_others(attacker: Hostile) -> str:
        await asyncio.sleep(0)  # the training beside begins
        for account in arena.accounts.list():
            if account.name not in (attacker.name, "workers"):
                arena.accounts.revoke(account.name)
        return "nothing: this one works"

    verdicts: list[Verdict] = []
    assert await play(arena, [revoke_others], verdicts.append) == 1
    assert verdicts[0].effect.startswith("HARMED: ")
