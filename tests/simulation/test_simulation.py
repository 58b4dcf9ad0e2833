"""The simulation itself: chosen worlds, and that it would notice if something were broken.

The sweep over many seeds is in `test_seeds_1.py` to `test_seeds_4.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from broker.protocol import messages as m
from broker.protocol import rows
from device_agent.state_folder import StateFolder
from server_worker import actor, kept_rows
from server_worker.actor import SessionActor
from server_worker.admission import deliveries
from server_worker.inbound import Inbound
from server_worker.replica import kept_state, replica, snapshots
from server_worker.replica.replica import BodyState, Replica
from server_worker.session.machine import WorkerSession
from server_worker.store import Attempt, ClaimOutcome, Owner, SessionMeta, StaleAttempt, StaleOwner, rules
from server_worker.store.sessions import Change, Moved, Written
from server_worker.store.sqlite.file import Beside, Database
from spliteasy.runtime.randomness import Seed, state_of
from spliteasy.training import segment_trainer
from spliteasy.training.segment_trainer import OPTIMIZER_PREFIX, SegmentTrainer
from tests.simulation import toy, world
from tests.simulation.faults import CALM, FREQUENT
from tests.simulation.run import drawn_variant, play
from tests.simulation.toy import DEVICES, FROZEN_HEAD, KEEPING, VARIANTS, Variant, undisturbed

DYING = replace(CALM, worker_crash=0.05)

AUTO = next(variant for variant in VARIANTS if variant.auto)
LONG_AFTER_THE_BEST = replace(KEEPING, epochs=30)
"""The log has left the best step behind when the training ends."""


@pytest.fixture(autouse=True)
def patient_with_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is given up as deadly: where workers die all the time, one of 64 seeds has one that six of
    them began in vain. `test_deadly_requests.py` is about that."""
    monkeypatch.setattr(actor, "MAX_DELIVERIES", 100)
    monkeypatch.setattr(deliveries, "MAX_UNREAD", 100)


def test_the_calm_world_is_the_same_training() -> None:
    for single in (False, True):
        assert play(0, rates=CALM, variant=Variant(single=single)).violations == ()


@pytest.mark.parametrize("single", [False, True])
def test_a_step_that_is_not_finite_passes_without_effect_under_faults_too(single: bool) -> None:
    """The data of `broken-1` has an infinity; with `skip` its step leaves both sides as they were."""
    variant = Variant(single=single, on_non_finite="skip")
    for seed in range(5):
        assert play(seed, rates=FREQUENT, variant=variant, devices=("broken-1",)).violations == ()


@pytest.mark.parametrize("single", [False, True])
def test_a_step_that_is_not_finite_stops_the_training(single: bool) -> None:
    (violation,) = play(0, rates=CALM, variant=Variant(single=single), devices=("broken-1",)).violations
    assert "the training data of broken-1, sample 3: input 'input' is infinite at [2]" in violation


def test_a_seed_replays() -> None:
    assert play(11).history == play(11).history


def test_a_frozen_head_sends_each_row_once_and_names_it_from_then_on() -> None:
    """Whatever becomes of the workers' memory: what they do not keep is missed, and comes again."""
    named, missed, room = Counter[str](), Counter[str](), set[bool]()
    recall = WorkerSession._recall

    def counted(session: WorkerSession, request: m.Recall) -> Any:
        named["rows"] += request.samples
        named["sent"] += sum(end - begin for begin, end in request.sent)
        absent = session._rows.absent(request, toy.job(FROZEN_HEAD).digest)
        missed["rows"] += absent.nbytes
        room.add(session._rows.limit_bytes > 4000)
        yield from recall(session, request)

    with mock.patch.object(WorkerSession, "_recall", counted):
        for seed in range(8):
            assert play(seed, rates=CALM, variant=FROZEN_HEAD).violations == (), f"seed {seed}"
        assert named["rows"] > 8 * 14
        assert missed["rows"] == 0
        assert room == {True, False}
        for seed in range(8):
            assert play(seed, rates=DYING, variant=FROZEN_HEAD).violations == (), f"seed {seed}"
        assert missed["rows"] > 0


def test_workers_that_die_leave_no_device_to_its_deadline() -> None:
    """Whatever one worker had, the next one is told of or asked about: the device's patience is long.

    Fleets are left out: so many workers die that a request which waits for a round would be buried.
    """
    for seed in range(16):
        alone = VARIANTS[seed % len(VARIANTS)]
        summary = play(seed, rates=DYING, variant=alone, reply_timeout_s=1e6)
        assert summary.violations == (), f"seed {seed}"


@pytest.mark.parametrize(
    ("loss_window_s", "log_bytes", "longest"),
    [(world.LOSS_WINDOW_S, snapshots.LOG_BYTES, 80), (0.0, snapshots.LOG_BYTES, 6), (0.0, 0, 2)],
)
def test_the_log_of_a_long_training_stays_short(loss_window_s: float, log_bytes: int, longest: int) -> None:
    """160 steps, some 30 within the store's loss window: the log reaches back two windows and a little.

    Without one, it reaches back to the oldest checkpoint kept; where steps are large beside a snapshot, the
    device is asked for checkpoints, and keeps two.
    """
    reach: list[int] = []
    trimmed = rules._trimmed

    def watched(meta: SessionMeta) -> SessionMeta:
        after = trimmed(meta)
        reach.append(after.committed - after.snapshots[0])
        return after

    with (
        mock.patch.object(rules, "_trimmed", watched),
        mock.patch.object(world, "LOSS_WINDOW_S", loss_window_s),
        mock.patch.object(snapshots, "LOG_BYTES", log_bytes),
    ):
        assert play(0, rates=CALM, variant=Variant(epochs=40), devices=("phone-1",)).violations == ()
    assert max(reach) <= longest


def test_a_training_goes_back_to_a_best_that_the_log_has_left_behind() -> None:
    for seed in range(4):
        rates = (CALM, FREQUENT)[seed % 2]
        assert play(seed, rates=rates, variant=LONG_AFTER_THE_BEST).violations == (), f"seed {seed}"


# Broken on purpose --------------------------------------------------------------------------------


def skip_the_fence_check() -> Any:
    def refusal(meta: SessionMeta | None, attempt: Attempt, owner: Owner) -> StaleAttempt | None:
        return None if meta is None or attempt == meta.attempt else StaleAttempt(stored=meta.attempt)

    return mock.patch.object(rules, "_refusal", refusal)


def skip_the_attempt_check() -> Any:
    def refusal(meta: SessionMeta | None, attempt: Attempt, owner: Owner) -> StaleOwner | None:
        return None if meta is None or owner == meta.owner else StaleOwner(stored=meta.owner)

    def claimed(meta: SessionMeta | None, *, attempt: Attempt, **rest: Any) -> ClaimOutcome:
        return claimed_as_ever(meta, attempt=attempt if meta is None else meta.attempt, **rest)

    claimed_as_ever = rules.claimed
    return mock.patch.multiple(rules, _refusal=refusal, claimed=claimed)


def ack_before_commit() -> Any:
    serve = SessionActor._serve

    async def acked_first(self: SessionActor, inbound: Inbound) -> None:
        await inbound.ack()
        await serve(self, inbound)

    return mock.patch.object(SessionActor, "_serve", acked_first)


def forget_to_restore_buffers() -> Any:
    def abort(self: SegmentTrainer) -> None:
        for parameter in self._trainable:
            parameter.grad = None
        self._buffers_before = None

    return mock.patch.object(SegmentTrainer, "abort", abort)


def trim_the_log_too_early() -> Any:
    def trimmed(meta: SessionMeta) -> SessionMeta:
        return replace(meta, snapshots=meta.snapshots[-1:])

    return mock.patch.object(rules, "_trimmed", trimmed)


def keep_no_log_beside_a_snapshot() -> Any:
    change = Database.change

    def changed(self: Database, asked: Change[Beside], *, now: float) -> Written | Moved:
        made = change(self, asked, now=now)
        if isinstance(made, Written) and made.meta is not None:
            self._connection.execute(
                "DELETE FROM log WHERE session = ? AND step <= ?", (asked.session, made.meta.snapshots[-1])
            )
        return made

    return mock.patch.object(Database, "change", changed)


def seed_dropout_without_the_lock() -> Any:
    @contextmanager
    def drawing_on(processor: torch.device, seed: Seed) -> Iterator[None]:
        torch.random.set_rng_state(state_of(seed))
        yield

    return mock.patch.object(segment_trainer, "drawing_on", drawing_on)


def forget_which_codecs_a_step_had() -> Any:
    return mock.patch.object(StateFolder, "codecs", None)


def keep_states_without_the_optimizer() -> Any:
    def packed(blobs: Mapping[str, bytes]) -> bytes:
        return kept_state.pack_state({n: x for n, x in blobs.items() if not n.startswith(OPTIMIZER_PREFIX)})

    return mock.patch.object(replica, "pack_state", packed)


def take_a_lost_step_again_on_its_own_state() -> Any:
    """Nor does it look whether the step gives what it gave: the device is to notice."""
    load_as_ever = Replica.load

    def load(self: Replica, meta: SessionMeta, *, replay_last: bool) -> Any:
        result = yield from load_as_ever(self, meta, replay_last=replay_last)
        if self._again is not None:
            assert self.body is not None
            step = self.body.step
            yield from self.body.keep_state((yield from self._last_entry(meta.committed)))
            self.body.step = step
        return result

    return mock.patch.multiple(Replica, load=load, taken_again=_trusting)


def _trusting(self: Replica, digest: str) -> None:
    self._again = None
    self._move(BodyState.READY)


def answer_from_another_row() -> Any:
    """A batch that is put together from kept rows begins with the row that should end it."""

    def joined(found: list[Any], form: Any) -> Any:
        return rows.joined([found[-1], *found[1:]], form)

    return mock.patch.object(kept_rows, "joined", joined)


def keep_nothing_as_the_best() -> Any:
    return mock.patch.object(WorkerSession, "_keep_best", _keeping_nothing)


def _keeping_nothing(self: Any, request: Any, body: Any) -> Any:
    yield from ()
    return True


def trim_the_best_with_the_log() -> Any:
    trimmed_as_ever = rules._trimmed

    def trimmed(meta: SessionMeta) -> SessionMeta:
        after = trimmed_as_ever(meta)
        return replace(after, best=tuple(step for step in after.best if step >= after.snapshots[0]))

    return mock.patch.object(rules, "_trimmed", trimmed)


MUTATIONS = {
    answer_from_another_row: CALM,
    keep_nothing_as_the_best: CALM,
    trim_the_best_with_the_log: CALM,
    keep_states_without_the_optimizer: FREQUENT,
    take_a_lost_step_again_on_its_own_state: FREQUENT,
    forget_which_codecs_a_step_had: FREQUENT,
    skip_the_fence_check: FREQUENT,
    skip_the_attempt_check: FREQUENT,
    ack_before_commit: DYING,
    forget_to_restore_buffers: FREQUENT,
    trim_the_log_too_early: FREQUENT,
    keep_no_log_beside_a_snapshot: FREQUENT,
    seed_dropout_without_the_lock: CALM,
}


TRIED = {
    answer_from_another_row: FROZEN_HEAD,
    forget_which_codecs_a_step_had: AUTO,
    keep_nothing_as_the_best: LONG_AFTER_THE_BEST,
    trim_the_best_with_the_log: LONG_AFTER_THE_BEST,
}
"""The variant that a mutation is tried with, where not all in turn."""

FIRST_SEED = {forget_which_codecs_a_step_had: 90}
"""The seed that a mutation is tried at first, where the lower ones do not notice it."""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_broken_build_is_caught(mutation: Callable[[], Any]) -> None:
    """The first seed that fails the broken build passes the whole one."""
    patience_s = 1e6 if mutation is ack_before_commit else 10.0
    variant = TRIED.get(mutation)
    first = FIRST_SEED.get(mutation, 0)
    for seed in range(first, first + 150):
        right = variant or drawn_variant(seed)
        for device in () if right.auto or right.fleet else DEVICES:
            undisturbed(device, right)  # kept from now on: what is right is not for a broken build to say
        with mutation():
            broken = play(seed, rates=MUTATIONS[mutation], reply_timeout_s=patience_s, variant=variant)
        if broken.violations:
            whole = play(seed, rates=MUTATIONS[mutation], reply_timeout_s=patience_s, variant=variant)
            assert whole.violations == ()
            return
    pytest.fail("150 seeds did not notice")
