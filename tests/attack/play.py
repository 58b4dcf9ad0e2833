"""Plays the attacks one by one; a device that knows nothing of them trains beside each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from spliteasy.errors import SplitEasyError
from tests.attack.arena import Arena
from tests.attack.hostile import Hostile, Undefended, dead_letters, hostile

Attack = Callable[[Hostile], Awaitable[str]]
ATTACK_S = 60.0
TRAINING_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on one attack."""

    attack: str
    stopped_by: str
    """The mechanism that stopped it, or nothing where none did."""
    effect: str
    """The effect on the training beside it."""
    violations: int


async def play(arena: Arena, attacks: Sequence[Attack], tell: Callable[[Verdict], None]) -> int:
    """Play all; the number of violations: attacks that nothing stopped, and trainings that were harmed."""
    violations = 0
    async with dead_letters(arena) as dead:
        for attack in attacks:
            async with hostile(arena, dead) as attacker:
                victim = asyncio.create_task(_train(arena))
                stopped_by = await _stopped_by(attack, attacker)
                effect, harmed = await victim
            name = attack.__name__.replace("_", " ")
            verdict = Verdict(
                attack=name,
                stopped_by=stopped_by or "",
                effect=effect,
                violations=(stopped_by is None) + harmed,
            )
            violations += verdict.violations
            tell(verdict)
    return violations


async def _stopped_by(attack: Attack, attacker: Hostile) -> str | None:
    """None where nothing stopped it."""
    try:
        async with asyncio.timeout(ATTACK_S):
            return await attack(attacker)
    except (Undefended, TimeoutError):
        return None


async def _train(arena: Arena) -> tuple[str, bool]:
    """A whole training by another device: what it came to, and whether that is harm."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(TRAINING_S):
            result = await arena.train(arena.new_device())
    except TimeoutError:
        return f"HARMED: not done after {TRAINING_S:.0f} s", True
    except (SplitEasyError, AssertionError) as error:
        return f"HARMED: {error}", True
    return f"none ({result.step} steps, same bits, {time.monotonic() - began:.1f} s)", not result.done
