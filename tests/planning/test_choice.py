"""The choice: best of all by its own numbers, and as constraints and links ask."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from spliteasy.errors import CutError, JobError
from spliteasy.job import Job, JobSpec
from spliteasy.job.source import load_source
from spliteasy.planning.choice import Chooser, Cut
from spliteasy.planning.conditions import Conditions, Constraints
from spliteasy.planning.correlation import InputCorrelation
from spliteasy.planning.costs import measure
from spliteasy.planning.flow import Flow
from spliteasy.planning.planner import plan_job
from spliteasy.planning.wire_costs import packed_wire
from spliteasy.training.losses import LOSSES
from tests.splitting.crossing import crossing, legal_pairs

NewSpec = Callable[..., JobSpec]
LINK = Conditions(up_bytes_s=1e6, down_bytes_s=2e6, rtt_s=0.01)
NARROWEST = {"narrow.0", "narrow"}


class Planning:
    """A model that is timed once, to be planned often."""

    def __init__(self, spec: JobSpec, root: Path) -> None:
        self.source = load_source(spec, root)
        source, loss = self.source, LOSSES["cross_entropy"]
        self.traced = source.traced
        self.flow = Flow(self.traced)
        self.costs = measure(self.traced, spec, loss, source.inputs, source.targets, budget_s=1.0)
        self.wire = packed_wire(
            self.traced, self.flow, loss, source.inputs, source.targets, batch=16, codecs=("fp32", "fp32")
        )
        self.correlation = InputCorrelation(self.traced, self.flow, source.inputs)

    def chooser(self, conditions: Conditions = LINK, constraints: Constraints | None = None) -> Chooser:
        return Chooser(
            self.traced,
            self.source.spec,
            self.flow,
            self.costs,
            self.wire,
            shared=(),
            conditions=conditions,
            constraints=constraints or Constraints(),
            label_bytes=16 * 8,
            correlation=self.correlation,
        )

    def best(self, conditions: Conditions = LINK, **constraints: float) -> Cut:
        return self.chooser(conditions, Constraints(**constraints)).choose()[1]  # type: ignore[arg-type]


@pytest.fixture
def pairs(new_spec: NewSpec, tmp_path: Path) -> Planning:
    return Planning(new_spec(), tmp_path)


@pytest.fixture
def singles(new_spec: NewSpec, tmp_path: Path) -> Planning:
    return Planning(new_spec(("wide",)), tmp_path)


def test_no_pair_is_better_than_the_best(pairs: Planning) -> None:
    chooser = pairs.chooser()
    rows, best = chooser.choose()
    everything = [chooser.at((first, second)) for first, second, _ in legal_pairs(pairs.traced)]
    working = [cut for cut in everything if cut.parameters[1]]
    assert len(working) > len(rows) > 1
    assert best.step_s == min(cut.step_s for cut in working)
    for row in rows:
        assert row.step_s == min(cut.step_s for cut in working if cut.cuts[0] == row.cuts[0])


def test_a_row_says_what_the_cut_is(pairs: Planning) -> None:
    for row in pairs.chooser().choose()[0]:
        there = crossing(pairs.traced, row.cuts)
        assert row.bytes_up == there.bytes_up(16)
        assert row.bytes_down == there.bytes_down(16)
        assert row.parameters == there.parameters
        assert row.step_s == pytest.approx(row.device_s + row.server_s + row.link_s)
        assert row.link_s == pytest.approx(2 * 0.01 + row.bytes_up / 1e6 + row.bytes_down / 2e6)


def test_single_cuts_send_labels_in_one_round_trip(singles: Planning) -> None:
    rows, best = singles.chooser().choose()
    assert best.step_s == min(row.step_s for row in rows)
    for row in rows:
        there = crossing(singles.traced, row.cuts[0])
        assert row.bytes_up == there.bytes_up(16) + 16 * 8
        assert row.bytes_down == there.bytes_down(16)
        assert row.parameters == there.parameters
        assert row.link_s == pytest.approx(0.01 + row.bytes_up / 1e6 + row.bytes_down / 2e6)


def test_a_slow_link_is_crossed_where_it_is_narrow(pairs: Planning) -> None:
    best = pairs.best(replace(LINK, up_bytes_s=1e3, down_bytes_s=1e3))
    assert best.cuts[0] in NARROWEST


def test_a_slow_device_computes_as_little_as_it_can(pairs: Planning) -> None:
    slow = Conditions(up_bytes_s=1e12, down_bytes_s=1e12, rtt_s=0, device_speed=(1e-6,) * 3)
    rows, best = pairs.chooser(slow).choose()
    assert best.cuts[0] == "wide.0"
    assert best.device_s == min(row.device_s for row in rows)


def test_speeds_of_the_device_count_by_kind(pairs: Planning) -> None:
    same, slow = (
        pairs.chooser(replace(LINK, device_speed=speed)).at(("wide", "heavy"))
        for speed in ((1.0, 1.0, 1.0), (1.0, 0.1, 1.0))
    )
    assert slow.device_s > 2 * same.device_s
    assert slow.server_s == same.server_s


def test_overhead_counts_by_trip_and_byte(pairs: Planning) -> None:
    plain = pairs.chooser().at(("wide", "heavy"))
    laden = pairs.chooser(replace(LINK, round_trip_s=0.5, byte_s=1e-6)).at(("wide", "heavy"))
    assert laden.link_s - plain.link_s == pytest.approx(2 * 0.5 + 1e-6 * (plain.bytes_up + plain.bytes_down))


def test_constraints_hold(pairs: Planning) -> None:
    free = pairs.best()
    rows, deeper = pairs.chooser(constraints=Constraints(min_head_layers=3)).choose()
    assert deeper.head_layers >= 3 > min(row.head_layers for row in rows)
    assert any(row.violates == ("min_head_layers",) for row in rows)
    tails, _ = pairs.chooser(constraints=Constraints(min_tail_layers=2)).choose()
    assert {row.violates for row in tails} >= {(), ("min_tail_layers",)}
    memory = sorted(row.memory_bytes for row in rows)
    limit = memory[len(memory) // 2]
    assert pairs.best(device_memory=limit).memory_bytes <= limit
    assert free.correlation is not None
    correlations = sorted(row.correlation or 0 for row in rows)
    limit_r = correlations[len(correlations) // 2]
    best = pairs.best(max_input_correlation=limit_r)
    assert best.correlation is not None
    assert best.correlation <= limit_r


def test_what_can_not_be_says_what_to_relax_and_that_does(pairs: Planning) -> None:
    with pytest.raises(CutError) as caught:
        pairs.best(device_memory=1000, min_head_layers=2)
    told = re.search(r"relax it to --device-memory ([0-9.]+)kb", str(caught.value))
    assert told, caught.value
    assert "no cut keeps to --device-memory 1kb and --min-head-layers 2" in caught.value.message
    limit = int(float(told[1]) * 1e3)
    assert pairs.best(device_memory=limit, min_head_layers=2).head_layers >= 2
    with pytest.raises(CutError, match=r"relax it to --min-head-layers [1-5]"):
        pairs.best(min_head_layers=100)
    with pytest.raises(CutError, match="nor to all but one"):
        pairs.best(min_head_layers=100, device_memory=1)


def test_auto_takes_the_best_cut_and_stores_it(new_spec: NewSpec, tmp_path: Path) -> None:
    spec = new_spec("auto", uplink="10kbit", downlink="10kbit")
    assert spec.model.auto
    job = Job.create(spec, tmp_path)
    assert job.spec.model.cuts[0] in NARROWEST
    assert len(job.spec.model.cuts) == 2
    assert not job.spec.model.auto


def test_auto_keeps_to_the_plan(new_spec: NewSpec, tmp_path: Path) -> None:
    job = Job.create(new_spec("auto", min_head_layers=4), tmp_path)
    assert sum(tensor.dim() > 1 for tensor in job.head.parameters()) >= 4
    with pytest.raises(CutError, match="min-head-layers"):
        Job.create(new_spec("auto", min_head_layers=40), tmp_path)


def test_what_a_plan_asks_is_no_part_of_the_job(new_spec: NewSpec) -> None:
    spec = new_spec()
    slower = spec.model_copy(update={"plan": spec.plan.model_copy(update={"uplink": "1mbit"})})
    assert slower != spec
    assert slower.to_json() == spec.to_json()


def test_one_auto_cut_where_labels_are_shared(new_spec: NewSpec, tmp_path: Path) -> None:
    spec = new_spec("auto")
    shared = spec.model_copy(update={"share_labels": True})
    job = Job.create(shared, tmp_path)
    assert len(job.spec.model.cuts) == 1
    assert job.tail is None


def test_a_correlation_needs_a_sample(new_spec: NewSpec, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="needs a sample of 4 inputs or more that differ"):
        plan_job(new_spec(example="alike", max_input_correlation=0.5), tmp_path)
    spec = new_spec(example="alike")
    assert any("all alike" in note for note in plan_job(spec, tmp_path).notes)
    reference = spec.model.example.replace(":alike", ":example")
    sampled = spec.model_copy(update={"plan": spec.plan.model_copy(update={"sample": reference})})
    found = plan_job(sampled, tmp_path)
    assert not found.notes
    assert all(row.correlation is not None for row in found.rows)


@pytest.mark.parametrize(("codec", "ratio"), [("fp16", 0.5), ("int8", 0.3), ("topk:0.01", 0.1)])
def test_codecs_shrink_what_travels(new_spec: NewSpec, tmp_path: Path, codec: str, ratio: float) -> None:
    spec = new_spec()
    link = spec.link.model_copy(update={"activations": codec, "gradients": codec})
    plain, packed = (
        plan_job(each, tmp_path, budget_s=0.1).own for each in (spec, spec.model_copy(update={"link": link}))
    )
    assert plain is not None
    assert packed is not None
    assert 0 < packed.bytes_up <= ratio * plain.bytes_up
    assert 0 < packed.bytes_down <= ratio * plain.bytes_down
