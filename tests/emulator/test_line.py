"""Bytes arrive, under a virtual clock, exactly by the rate, the delay and the order."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.emulator import PROFILES, Direction, LinkEmulator, Outage, Profile
from benchmarks.emulator.line import Line
from tests.simulation.clock import run_virtually


def line(**settings: float) -> Line:
    made = Line(seed=1, timer_late_s=0.0)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


async def send(through: Line, counts: list[int]) -> list[float]:
    return [await through.enter(count) for count in counts]


def test_pieces_leave_at_the_rate_and_arrive_a_latency_later() -> None:
    due = run_virtually(send(line(rate=1000.0, latency_s=0.5), [100, 300, 50]))
    assert due == pytest.approx([0.6, 0.9, 0.95])


def test_a_line_at_rest_saves_up_no_rate() -> None:
    async def main() -> list[float]:
        through = line(rate=1000.0)
        first = await through.enter(100)
        await asyncio.sleep(10)
        return [first, *await send(through, [100, 100])]

    assert run_virtually(main()) == pytest.approx([0.1, 10.1, 10.2])


def test_connections_share_the_rate_evenly() -> None:
    async def main() -> tuple[list[float], list[float]]:
        through = line(rate=1000.0)
        return await asyncio.gather(send(through, [10] * 500), send(through, [10] * 500))

    one, other = run_virtually(main())
    assert max(one[-1], other[-1]) == pytest.approx(10.0)
    assert abs(one[250] - other[250]) < 0.2, "but for the queue that the first one found empty"


def test_who_sends_faster_than_the_line_waits_until_its_queue_has_room() -> None:
    async def main() -> float:
        through = line(rate=1000.0, latency_s=9.0)
        await send(through, [100] * 100)
        return asyncio.get_running_loop().time()

    assert run_virtually(main()) == pytest.approx(9.9 - 0.05, abs=0.11)


def test_jitter_is_even_bounded_and_a_function_of_the_seed() -> None:
    async def delays() -> list[float]:
        return await send(line(latency_s=1.0, jitter_s=0.5), [0] * 2000)

    late = run_virtually(delays())
    assert late == run_virtually(delays())
    assert min(late) >= 1.0
    assert max(late) <= 1.5
    assert sum(late) / len(late) == pytest.approx(1.25, abs=0.02)


def test_nothing_enters_or_arrives_while_the_line_is_stalled() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        through = line(rate=1000.0)
        due = await through.enter(100)
        through.stall()
        loop.call_later(5, through.resume)
        await through.arrive(due)
        return [loop.time(), await through.enter(100)]

    assert run_virtually(main()) == pytest.approx([5.0, 5.1])


def test_the_bytes_of_a_limit_pass_and_then_it_calls_once() -> None:
    through, calls = line(), []
    through.limit(150, lambda: calls.append("cut"))
    passed = []
    for count in (100, 100, 100):
        passed.append(through.allow(count))
        through.used_up()
    assert (passed, calls) == ([100, 50, 100], ["cut"])


def test_a_window_holds_the_bandwidth_delay_product() -> None:
    for profile in PROFILES.values():
        rate = profile.down_bytes_s
        if rate is not None:
            window = line(rate=rate, latency_s=profile.latency_s).window_bytes
            assert rate * profile.latency_s <= window <= rate * (profile.latency_s + 0.06) + 2000


def test_outages_come_and_go_by_the_clock() -> None:
    """The flaky profile: ten seconds up, three down."""
    outage = PROFILES["flaky-lte"].outage
    assert outage == Outage(every_s=10, for_s=3)

    async def main() -> list[tuple[float, bool]]:
        link = LinkEmulator(("127.0.0.1", 1))
        loop = asyncio.get_running_loop()
        link.set_profile(PROFILES["flaky-lte"])
        seen = []
        for moment in (9.9, 10.1, 12.9, 13.1, 22.9, 23.1, 26.1):
            await asyncio.sleep(moment - loop.time())
            seen.append((moment, link.refusing))
        link.set_profile(PROFILES["lte"])
        await asyncio.sleep(100)
        seen.append((126.1, link.refusing))
        assert link.cuts == 2
        return seen

    up_or_down = [False, True, True, False, False, True, False, False]
    assert [down for _, down in run_virtually(main())] == up_or_down


@pytest.mark.parametrize(("rate", "latency_s", "jitter_s"), [(0, 0, 0), (-1, 0, 0), (1, -1, 0), (1, 0, -0.1)])
def test_a_profile_that_cannot_be_is_refused(rate: float, latency_s: float, jitter_s: float) -> None:
    with pytest.raises(ValueError, match="rates are above 0"):
        Profile(down_bytes_s=rate, latency_s=latency_s, jitter_s=jitter_s)


def test_the_profiles_are_those_that_the_benchmarks_name() -> None:
    mbit = 125_000
    assert {"lan", "wifi", "lte", "3g", "flaky-lte"} <= PROFILES.keys()
    lte, slow = PROFILES["lte"], PROFILES["3g"]
    assert (lte.up_bytes_s, lte.down_bytes_s, lte.latency_s) == (20 * mbit, 50 * mbit, 0.025)
    assert (slow.up_bytes_s, slow.down_bytes_s, slow.latency_s) == (1 * mbit, 4 * mbit, 0.075)
    assert Direction("up") is Direction.UP
