"""Faults that deserve a test of their own: each on processes of its own, and each ends in the same bits."""

from __future__ import annotations

import random
import resource
import shutil
import signal
from pathlib import Path

import pytest

from benchmarks.emulator import Profile
from tests.chaos import server_faults, toy, worker_faults
from tests.chaos.conftest import NewTraining, Trained
from tests.chaos.device import PROFILE
from tests.chaos.record import percentile
from tests.chaos.scene import until

pytestmark = [pytest.mark.rabbitmq, pytest.mark.redis, pytest.mark.asyncio(loop_scope="module")]
RNG = random.Random(1)
TAKEOVER_S = 10.0
"""Ten times the goal, for a machine where many others are at work."""

SOON_S = 60.0
KILLS = 3
UNHURRIED = Profile(latency_s=0.2)
"""A training that is not over before the killed worker is there again."""


async def run(trained: Trained, *options: object, state: Path) -> tuple[int, str]:
    """Another agent of the same device, to its end: the exit code, and what it said to a person."""
    device = trained.device
    agent = await trained.stack.spliteasy(
        *("agent", "--job", trained.job, "--device", device.device_id),
        *("--data", toy.DATA, "--state", state, *options),
        name=f"{device.device_id}-beside",
        environment={"SPLITEASY_BROKER": trained.stack.rabbit.url()},
    )
    return await agent.wait(), " ".join(agent.last_lines)


async def test_a_worker_that_was_given_up_and_comes_back_can_do_no_harm(train: NewTraining) -> None:
    """SIGSTOP until the broker hands its sessions on, then SIGCONT: its commit comes too late."""
    trained = await train(toy.LOSSY)
    record, session = trained.stack.record, trained.device.session
    zombie = trained.stack.workers[record.owners[session]]
    await worker_faults.zombie(trained.scene, RNG, "zombie")
    assert record.owners[session] != zombie.number
    await trained.finish()
    assert zombie.running


async def test_a_killed_workers_session_moves_again_at_once(train: NewTraining) -> None:
    trained = await train(toy.SINGLE)
    trained.device.link.set_profile(UNHURRIED)
    for _ in range(KILLS):
        await worker_faults.killed(trained.scene, RNG, "worker killed")
    trained.device.link.set_profile(PROFILE)
    await trained.finish()
    record = trained.stack.record
    moved_after = record.moved_after["worker killed"] + record.together["worker killed"]
    print(f"moved again after {sorted(moved_after)} s")
    assert len(moved_after) == KILLS
    assert percentile(moved_after, 0.95) < TAKEOVER_S


async def test_rabbitmq_comes_back_after_a_crash(train: NewTraining) -> None:
    trained = await train(toy.LOSSY)
    await server_faults.rabbitmq_restarts(trained.scene, RNG, "restart")
    await trained.finish()


async def test_redis_comes_back_after_a_crash_and_nothing_is_done_again(train: NewTraining) -> None:
    trained = await train(toy.SINGLE)
    await trained.reach(40)
    await server_faults.redis_restarts(trained.scene, RNG, "restart")
    await trained.finish()
    assert trained.stack.record.steps_again == 0


async def test_both_sides_go_back_where_redis_lost_its_last_second(train: NewTraining) -> None:
    trained = await train(toy.LOSSY)
    await trained.reach(60)
    await server_faults.redis_loses_its_last_second(trained.scene, RNG, "lost")
    await trained.finish()
    assert trained.stack.record.steps_again > 0


async def test_a_second_agent_of_a_device_is_told_so(train: NewTraining, tmp_path: Path) -> None:
    """The second agent starts on a folder of its own, and on the first one's; the first one trains on."""
    trained = await train(toy.SINGLE)
    assert trained.device.agent is not None
    trained.device.agent.signal(signal.SIGSTOP)  # or it might be done before the others have begun
    code, said = await run(trained, state=tmp_path / "other")
    assert code == 2
    assert "another agent runs as this device" in said
    assert "--takeover" in said
    code, said = await run(trained, state=trained.device.state)
    assert code == 2
    assert "is in use by another agent" in said
    trained.device.agent.signal(signal.SIGCONT)
    await trained.finish()


async def test_a_disk_without_room_for_a_checkpoint(train: NewTraining) -> None:
    """The agent stops, says so, and goes on from the checkpoint before once there is room."""
    trained = await train()
    assert trained.device.agent is not None
    resource.prlimit(trained.device.agent.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
    assert await until(trained.task.done, SOON_S)
    (violation,) = trained.stack.record.violations
    assert "ended with 1: error: state folder" in violation
    assert "can't be written: File too large" in violation
    trained.stack.record.violations.clear()
    await trained.start_again()
    await trained.finish()


async def test_a_lost_state_folder_is_refused_until_told_to_begin_anew(train: NewTraining) -> None:
    trained = await train()
    await trained.reach(60)
    async with trained.device.killed():
        shutil.rmtree(trained.device.state)
        trained.device.lost_checkpoints = True
    await trained.finish()
    told = [line for line in trained.stack.record.history if " ended with 2: error: " in line]
    assert any("--restart" in line for line in told), told


async def test_a_session_that_was_forgotten_is_refused_until_told_to_begin_anew(train: NewTraining) -> None:
    trained = await train(toy.SINGLE)
    await trained.reach(60)
    async with trained.device.killed():  # or it might be done before the command has begun
        forget = await trained.stack.spliteasy(
            *("session", "forget", trained.device.session, "--yes"),
            name="forget",
            environment={"SPLITEASY_STORE": trained.stack.redis.url},
        )
        assert await forget.wait() == 0
        # Begun as lately as this, it might still have what a training begins with, and go on from there.
        for file in trained.device.state.glob("**/checkpoints/*"):
            if file.name.isdigit() and int(file.name) == 0:  # the kill may have left a temporary file too
                file.unlink()
    trained.device.lost_checkpoints = True  # to do what the message says, as a person would
    await trained.finish()
    (told,) = [line for line in trained.stack.record.history if " ended with 2: error: " in line]
    assert "no step that both sides can restore" in told
    assert "--restart" in told


async def test_a_worker_told_to_stop_leaves_a_snapshot(train: NewTraining) -> None:
    """A planned move replays no more than the steps taken while the shards change hands."""
    trained = await train()
    record = trained.stack.record
    await trained.reach(30)
    owner = trained.stack.workers[record.owners[trained.device.session]]
    replayed = record.replayed
    await trained.stack.drain_worker(owner)
    await trained.finish()
    assert record.owners[trained.device.session] != owner.number
    assert record.replayed - replayed <= 3


async def test_an_agent_stopped_by_sigterm_goes_on_from_the_same_step(train: NewTraining) -> None:
    trained = await train()
    assert trained.device.agent is not None
    trained.device.agent.signal(signal.SIGTERM)
    assert await until(trained.task.done, SOON_S)
    trained.stack.record.violations.clear()
    trained.device.finished.clear()
    await trained.start_again()
    await trained.finish()
    assert trained.stack.record.steps_again == 0
