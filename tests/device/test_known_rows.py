"""A device with a frozen head names rows that the worker keeps, and sends whatever it does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from broker.protocol import messages as m
from broker.protocol.rows import row_names
from device_agent.session import events as e
from device_agent.session.events import Timer
from device_agent.session.known_rows import LOST_RECALLS
from device_agent.training.cut_codec import rows_come_again
from device_agent.training.ends import draw_ends, job_key
from device_agent.training.trainer import end_trainers
from spliteasy.codecs.packer import Packed
from spliteasy.job import JobSpec
from spliteasy.training.segment_trainer import SegmentTrainer
from tests.drawn import SECRET
from tests.simulation import toy
from tests.vectors.scripts import Life

SAMPLES = 4
VALUES = torch.arange(20.0).reshape(SAMPLES, 5)


class Steps(Life):
    """A machine whose steps have rows with names, and a worker that says what a test wants."""

    def __init__(self) -> None:
        super().__init__(total_steps=100, checkpoint_every=1000, rows_per_epoch=SAMPLES)
        self.begin()
        self.step = 0

    def head(self, values: torch.Tensor = VALUES) -> m.AnyRequest:
        """The next step's head is done: what is sent then."""
        self.step += 1
        names = row_names((values,), SAMPLES)
        actions = self.do(e.HeadDone(Packed((values,)), SAMPLES, (), SAMPLES, names=names))
        return self.sent(actions)

    def sent(self, actions: list[e.Action]) -> m.AnyRequest:
        (send,) = [action for action in actions if isinstance(action, e.Send)]
        assert not isinstance(send.message, m.GetJob)
        return send.message  # type: ignore[return-value]

    def rest(self, forward: str, *, kept: bool | None) -> None:
        """The worker computes the FORWARD of that id, and the step is taken."""
        about: dict[str, Any] = {"session": self.session.plan.session, "attempt": self.attempt, "fence": 3}
        outputs = m.Forwarded(**about, answers=forward, step=self.step, values=(VALUES,), kept=kept)
        actions = self.do(e.Received(outputs), e.TailDone(Packed((VALUES,))))
        back = self.sent(actions).request
        self.do(e.Received(m.Gradient(**about, answers=back, step=self.step, durable_step=0, values=(None,))))
        self.do(e.Applied())

    def missing(self, answers: str, rows: m.Ranges | None = None) -> m.AnyRequest:
        about: dict[str, Any] = {"session": self.session.plan.session, "attempt": self.attempt, "fence": 3}
        missing = m.Missing(**about, answers=answers, step=self.step, missing="FORWARD", rows=rows)
        return self.sent(self.do(e.Received(missing)))


def whole_step(steps: Steps, *, kept: bool | None = True) -> m.Forward:
    request = steps.head()
    assert isinstance(request, m.Forward)
    steps.rest(request.request, kept=kept)
    return request


def test_rows_are_named_once_the_worker_has_said_that_it_keeps_them() -> None:
    steps = Steps()
    assert whole_step(steps).keep
    recall = steps.head(VALUES[[3, 1, 0, 2]])
    assert isinstance(recall, m.Recall)
    assert recall.sent == ()
    assert recall.values[1:] == (None,)
    steps.rest(recall.forward, kept=True)
    assert isinstance(steps.head(), m.Recall)


@pytest.mark.parametrize("kept", [None, False])
def test_a_worker_that_does_not_say_so_gets_every_row(kept: bool | None) -> None:
    """An older one says nothing, and could not read a RECALL."""
    steps = Steps()
    whole_step(steps, kept=kept)
    assert isinstance(steps.head(), m.Forward)


def test_what_the_worker_does_not_keep_is_sent_whole_and_not_named_again() -> None:
    steps = Steps()
    whole_step(steps)
    recall = steps.head()
    assert isinstance(recall, m.Recall)
    forward = steps.missing(recall.request, ((0, 4),))
    assert isinstance(forward, m.Forward)
    assert forward.request == recall.forward
    steps.rest(forward.request, kept=False)
    assert isinstance(steps.head(), m.Forward)


def test_rows_that_the_worker_lacks_travel_in_the_recall() -> None:
    steps = Steps()
    whole_step(steps)
    recall = steps.head()
    steps.missing(recall.request, ((1, 2),))
    assert isinstance(recall, m.Recall)
    steps.rest(recall.forward, kept=False)
    again = steps.head()
    assert isinstance(again, m.Recall)
    assert again.sent == ((1, 2),)
    sent = again.values[1]
    assert isinstance(sent, torch.Tensor)
    assert torch.equal(sent, VALUES[1:2])


def test_a_recall_that_no_worker_knows_of_is_asked_about_and_the_forward_sent() -> None:
    steps = Steps()
    whole_step(steps)
    for _ in range(LOST_RECALLS):
        recall = steps.head()
        assert isinstance(recall, m.Recall)
        steps.do(e.Sent(recall.request))
        ask = steps.sent(steps.do(e.Fired(Timer.REPLY)))
        assert isinstance(ask, m.Ask)
        assert ask.about == recall.forward
        forward = steps.missing(ask.request)
        assert isinstance(forward, m.Forward)
        steps.rest(forward.request, kept=True)
    forward = steps.head()
    assert isinstance(forward, m.Forward), "an older worker may serve it, which can't read one"
    steps.rest(forward.request, kept=None)
    steps.do(e.LinkDown(), e.LinkUp())
    assert isinstance(steps.head(), m.Forward)


def test_a_recall_that_was_not_sent_is_sent_when_the_link_is_up_again() -> None:
    steps = Steps()
    whole_step(steps)
    steps.do(e.LinkDown())
    names = row_names((VALUES,), SAMPLES)
    steps.step += 1
    done = e.HeadDone(Packed((VALUES,)), SAMPLES, (), SAMPLES, names=names)
    assert not [action for action in steps.do(done) if isinstance(action, e.Send)]
    assert isinstance(steps.sent(steps.do(e.LinkUp())), m.Recall)


def test_the_rest_of_a_recall_is_sent_where_a_part_has_come() -> None:
    steps = Steps()
    whole_step(steps)
    recall = steps.head()
    (send,) = steps.do(e.Received(m.Have(answers=recall.request, ranges=((0, 100),))))[-1:]
    assert isinstance(send, e.Send)
    assert (send.message, send.skip) == (recall, ((0, 100),))


def test_samples_that_differ_each_time_are_not_kept_for_long() -> None:
    """Augmentation is seen by that: two epochs have passed, and no row came again."""
    steps, generator = Steps(), torch.Generator().manual_seed(3)
    asked = []
    for _ in range(5):
        request = steps.head(torch.randn(SAMPLES, 5, generator=generator))
        assert isinstance(request, m.Forward)
        asked.append(request.keep)
        steps.rest(request.request, kept=True)
    assert asked == [True, True, None, None, None]


def head_of(variant: toy.Variant) -> tuple[JobSpec, SegmentTrainer]:
    job = toy.job(variant)
    key = job_key(SECRET, device="phone-1", job=job.digest)
    return job.spec, end_trainers(job, device="phone-1", key=key, ends=draw_ends(job, key))[0]


def test_rows_come_again_where_nothing_changes_what_the_head_gives() -> None:
    spec, head = head_of(toy.FROZEN_HEAD)
    assert rows_come_again(spec, head)
    for section, changes in (
        ("link", {"cache": False}),
        ("link", {"activations": "int8"}),
        ("link", {"activations": "lossless"}),
        ("link", {"activations": "topk:0.5"}),
        ("privacy", {"clip_activations": 1.0, "noise_activations": 0.1}),
    ):
        changed = getattr(spec, section).model_copy(update=changes)
        assert not rows_come_again(spec.model_copy(update={section: changed}), head), changes
    assert not rows_come_again(spec.model_copy(update={"epochs": 1}), head)
    for codec in ("fp16", "bf16"):
        narrow = spec.link.model_copy(update={"activations": codec})
        assert rows_come_again(spec.model_copy(update={"link": narrow}), head)


@pytest.mark.parametrize("factory", ["build", "build_frozen_but_random", "build_frozen_but_moving"])
def test_a_head_that_trains_draws_or_counts_gives_other_rows(factory: str) -> None:
    spec, head = head_of(replace(toy.FROZEN_HEAD, factory=f"tests.simulation.toy:{factory}"))
    assert not rows_come_again(spec, head)


def test_the_setting_is_no_part_of_a_version_unless_it_is_off() -> None:
    """Older versions do not know it."""
    spec = toy.job(toy.FROZEN_HEAD).spec
    off = spec.model_copy(update={"link": spec.link.model_copy(update={"cache": False})})
    assert b"cache" not in spec.to_json()
    assert b'"cache":false' in off.to_json()
