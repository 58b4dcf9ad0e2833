"""Codecs chosen by the device: from the link's own traffic, once a step, and the same after a restart."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.link.speed import LinkSpeed
from device_agent.training.codec_policy import BySpeed, StepChoices, Values
from spliteasy.job.spec import LinkSpec

ALLOW = ("lossless", "fp16", "int8")
LINK = LinkSpec(activations="auto", gradients="auto", allow=ALLOW)
UP: Values = ("up", "activations")
DOWN: Values = ("down", "gradients")
NBYTES = {UP: 8 << 20, DOWN: 8 << 20}
MBIT = 1e6 / 8


def test_the_codec_follows_the_link() -> None:
    speed = LinkSpeed()
    chooser = BySpeed(LinkSpec(activations="auto", allow=("fp32", "fp16", "int8")), speed)
    speed.sent(100, 0.0002)
    chosen = []
    for rate in (2 * MBIT, 20 * MBIT, 50_000 * MBIT, 50_000 * MBIT, 50_000 * MBIT, MBIT, MBIT):
        nbytes = 4 << 20
        speed.sent(nbytes, 0.0002 + nbytes / rate)
        chosen.append(chooser.choose(UP, 8 << 20))
    assert chosen[:2] == ["int8", "int8"]
    assert chosen[4] in ("fp16", "fp32")
    assert chosen[-1] in ("fp16", "int8")
    assert speed.rtt_s == 0.0002


def test_one_small_or_single_message_says_nothing_of_a_rate() -> None:
    speed = LinkSpeed()
    speed.sent(200, 0.08)
    speed.arrived(200, 5.0, last=True)
    assert (speed.rtt_s, speed.up, speed.down) == (0.08, None, None)
    speed.connected()
    assert speed.rtt_s is None


def test_a_downlink_is_measured_between_the_frames_of_a_reply() -> None:
    speed = LinkSpeed()
    for index in range(5):
        speed.arrived(1000_000, 10.0 + index * 0.5, last=index == 4)
    assert speed.down == pytest.approx(2e6)
    speed.sent(1_000_000, 10.0)
    assert speed.up == pytest.approx(1e5)
    assert speed.down == pytest.approx(2e6)


def test_until_it_is_measured_a_downlink_counts_as_the_uplink() -> None:
    speed = LinkSpeed()
    speed.sent(1_000_000, 4.0)
    assert speed.down == speed.up == 250_000


@dataclass
class Script:
    """Chooses what it is told to."""

    wishes: itertools.cycle[str] = field(default_factory=lambda: itertools.cycle(ALLOW))

    def choose(self, values: Values, nbytes: int) -> str:
        return next(self.wishes)

    def packed(self, values: Values, codec: str, *, before: int, after: int) -> None:
        pass


@dataclass
class Disk:
    content: bytes | None = None

    def save(self, content: bytes) -> None:
        self.content = content


def choices_of(disk: Disk, wishes: list[str], *, ahead: int) -> StepChoices:
    script = Script(itertools.cycle(wishes))
    return StepChoices(LINK, script, ahead=ahead, saved=disk.content, save=disk.save)


lives = st.lists(
    st.tuples(
        st.integers(0, 6), st.integers(1, 12), st.lists(st.sampled_from(ALLOW), min_size=1, max_size=5)
    ),
    min_size=1,
    max_size=8,
)


@given(st.integers(1, 10), lives)
def test_a_step_keeps_its_codecs_through_every_restart(
    ahead: int, lives: list[tuple[int, int, list[str]]]
) -> None:
    """Each life goes back by some steps, is told other wishes, and takes some steps."""
    disk, step, used = Disk(), 0, dict[int, dict[Values, str]]()
    for back, steps, wishes in lives:
        choices = choices_of(disk, wishes, ahead=ahead)
        step = max(0, step - back)
        for _ in range(steps):
            step += 1
            chosen = choices.at(step, NBYTES)
            assert chosen == choices.at(step, NBYTES) == used.setdefault(step, chosen)
            assert choices_of(disk, ["int8"], ahead=ahead).at(step, NBYTES) == chosen


def test_a_change_within_one_life_counts_at_once_and_after_a_restart_when_the_promised_steps_are_over() -> (
    None
):
    disk = Disk()
    choices = choices_of(disk, ["int8"], ahead=4)
    assert all(choices.at(step, NBYTES)[UP] == "int8" for step in range(1, 9))
    choices.chooser = Script(itertools.cycle(["fp16"]))
    assert choices.at(9, NBYTES)[UP] == "fp16"
    again = choices_of(disk, ["lossless"], ahead=4)
    assert [again.at(step, NBYTES)[UP] for step in range(8, 15)] == ["int8"] + ["fp16"] * 4 + ["lossless"] * 2


def test_without_auto_nothing_is_written() -> None:
    disk = Disk()
    choices = StepChoices(LinkSpec(gradients="int8"), Script(), ahead=1, save=disk.save)
    fixed = BySpeed(LinkSpec(gradients="int8"), LinkSpeed())
    choices.chooser = fixed
    assert choices.at(1, NBYTES) == {UP: "fp32", DOWN: "int8"}
    assert disk.content is None


def test_a_damaged_file_is_as_good_as_none() -> None:
    assert choices_of(Disk(b"{"), ["fp16"], ahead=3).at(5, NBYTES) == {UP: "fp16", DOWN: "fp16"}
