"""CutPlan a job: time its model, look at every cut, choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from spliteasy.codecs import choose_codec
from spliteasy.codecs.packer import PLACES
from spliteasy.errors import CutError, JobError
from spliteasy.job.source import Source, example_of, load_source, make_loss
from spliteasy.job.spec import JobSpec, LinkSpec, PlanSpec
from spliteasy.planning.choice import Chooser, Cut
from spliteasy.planning.conditions import Conditions, Constraints
from spliteasy.planning.correlation import MIN_SAMPLES, InputCorrelation, varies
from spliteasy.planning.costs import BUDGET_S, OperatorCosts, Tensors, measure, resized
from spliteasy.planning.flow import Flow
from spliteasy.planning.leaks import Judge, Leak
from spliteasy.planning.profile import USUAL, Profile, measure_compute
from spliteasy.planning.whole_model import whole_segment
from spliteasy.planning.wire_costs import packed_wire
from spliteasy.privacy.advice import bounds_inputs, bounds_labels
from spliteasy.runtime import user_code
from spliteasy.runtime.generators import states_kept
from spliteasy.runtime.units import parse_duration, parse_rate, parse_size
from spliteasy.splitting.losses import PortableLoss
from spliteasy.splitting.split import regrouped_note, split_traced
from spliteasy.training.losses import LossFunction
from spliteasy.training.segment_trainer import tensors_of

MAX_SAMPLES = 64
"""The correlation and the codecs are measured on at most this many samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPlan:
    """The result of planning: the best cut behind each place, and the best of all."""

    spec: JobSpec
    rows: tuple[Cut, ...]
    """The cuts, ordered by the first one."""
    best: Cut
    own: Cut | None
    """The cuts that the job file names; None for "auto"."""
    costs: OperatorCosts
    conditions: Conditions
    constraints: Constraints
    operators: frozenset[str] = frozenset()
    """The operators that devices run under the best cuts."""
    notes: tuple[str, ...] = ()
    """Notes that a reader of the numbers has to know."""


def plan_job(
    spec: JobSpec,
    root: Path | None = None,
    *,
    profile: Profile | None = None,
    budget_s: float = BUDGET_S,
    leaks: Sequence[Leak] = (),
    judge: Judge = lambda _: (),
) -> CutPlan:
    """Return the CutPlan under the job's `[plan]`: the user's code is imported, run and timed here.

    `leaks`: limits that are known not to hold at some cuts. `judge`: looks at each cut before it is proposed.
    Raises JobError, and CutError where no cut keeps to the constraints.
    """
    source = load_source(spec, root)
    return plan_source(source, profile=profile, budget_s=budget_s, leaks=leaks, judge=judge)


def plan_source(
    source: Source,
    *,
    profile: Profile | None = None,
    budget_s: float = BUDGET_S,
    costs: OperatorCosts | None = None,
    leaks: Sequence[Leak] = (),
    judge: Judge = lambda _: (),
) -> CutPlan:
    """`plan_job` for a model that is built and traced already; `costs`: and timed already."""
    spec, traced = source.spec, source.traced
    settings = spec.plan
    loss = _loss(source)
    inputs, targets, notes = _sample(source)
    shared = source.shared_inputs
    flow = Flow(traced, shared)
    conditions = conditions_of(settings, profile)
    codecs = planned_codecs(spec.link, conditions)
    batch = spec.batch_size
    correlation = None
    if varies(inputs) and len(inputs[0]) >= MIN_SAMPLES:
        correlation = InputCorrelation(traced, flow, inputs)
    elif settings.max_input_correlation is not None:
        raise JobError(
            f"max_input_correlation needs a sample of {MIN_SAMPLES} inputs or more that differ",
            hint="name a function that returns (inputs, targets): [plan] sample, or --sample",
        )
    chooser = Chooser(
        traced,
        spec,
        flow,
        costs := measure(traced, spec, loss, *_made_up(inputs, targets), budget_s=budget_s),
        packed_wire(traced, flow, loss, *_made_up(inputs, targets), batch=batch, codecs=codecs),
        shared=shared,
        conditions=conditions,
        constraints=(constraints := constraints_of(spec)),
        label_bytes=sum(y.nbytes // len(y) for y in targets) * batch,
        correlation=correlation,
        leaks=leaks,
        judge=judge,
    )
    rows, best = chooser.choose()
    own = None
    if not spec.model.auto:
        try:
            own = chooser.at(spec.model.cuts)
            note = regrouped_note(traced, spec.model.cuts, shared)
            notes = (*notes, note) if note else notes
        except CutError as error:
            notes = (*notes, f"the job's own cuts can't be: {error}")
    return CutPlan(
        spec=spec,
        rows=tuple(rows),
        best=best,
        own=own,
        costs=costs,
        conditions=conditions,
        constraints=constraints,
        operators=_of_devices(source, best.cuts),
        notes=notes,
    )


def _of_devices(source: Source, cuts: Sequence[str]) -> frozenset[str]:
    """The operators of head and tail, in training and in evaluation."""
    head, *others = split_traced(source.traced, cuts, share_inputs=source.shared_inputs).segments
    documents = [each.program.document for each in (head, *others[1:])]
    return frozenset(node.op for d in documents for graph in (d.train, d.eval) for node in graph.nodes)


def conditions_of(settings: PlanSpec, profile: Profile | None = None) -> Conditions:
    """Device and link as `[plan]` names them; what it leaves open, as the profile says.

    With a profile, the same kernels are timed here, to compare.
    """
    named = settings.model_fields_set
    link = profile.link if profile is not None else None
    overhead = (profile.overhead if profile is not None else None) or USUAL
    speeds = (settings.device_speed,) * 3
    if profile is not None and "device_speed" not in named:
        speeds = profile.compute.speeds_beside(measure_compute())
    use = {name: link if name not in named else None for name in ("uplink", "downlink", "rtt")}
    return Conditions(
        up_bytes_s=use["uplink"].up_bytes_s if use["uplink"] else parse_rate(settings.uplink, "uplink"),
        down_bytes_s=(
            use["downlink"].down_bytes_s if use["downlink"] else parse_rate(settings.downlink, "downlink")
        ),
        rtt_s=use["rtt"].rtt_s if use["rtt"] else parse_duration(settings.rtt, "rtt"),
        device_speed=speeds,
        server_speed=settings.server_speed,
        round_trip_s=overhead.round_trip_s,
        byte_s=overhead.byte_s,
    )


def planned_codecs(link: LinkSpec, conditions: Conditions) -> tuple[str, str]:
    """Return the codecs of activations and gradients. For "auto" they are those for a megabyte on the slower
    direction."""
    rate = min(conditions.up_bytes_s, conditions.down_bytes_s)
    activations, gradients = (choose_codec(link.codecs[place], nbytes=1 << 20, rate=rate) for place in PLACES)
    return activations, gradients


def constraints_of(spec: JobSpec) -> Constraints:
    """Return the constraints that `[plan]` asks for and that keep labels and inputs from being told.

    A tail without a layer tells labels by its gradients, unless `[privacy]` changes either.
    """
    settings, privacy = spec.plan, spec.privacy
    memory = settings.device_memory
    plain = not spec.single and privacy.label_dp is None and not privacy.noisy_gradients
    return Constraints(
        device_memory=parse_size(memory, "device_memory") if memory is not None else None,
        min_head_layers=max(settings.min_head_layers, int(bounds_inputs(privacy.limits))),
        min_tail_layers=int(plain or bounds_labels(privacy.limits)),
        max_input_correlation=settings.max_input_correlation,
    )


def _sample(source: Source) -> tuple[Tensors, Tensors, tuple[str, ...]]:
    """Inputs and targets to look at, and what to say of them."""
    reference = source.spec.plan.sample
    inputs, targets = source.inputs, source.targets
    if reference is not None:
        make = user_code.resolve(reference, root=source.root, what="plan.sample")
        with states_kept():
            given = user_code.call(make, reference=reference, what="plan.sample")
        inputs, targets = example_of(source.spec, given, what="plan.sample")
    if len(inputs[0]) < MAX_SAMPLES and reference is None and not varies(inputs):
        return inputs, targets, (
            "the example's inputs are all alike: no correlation is measured, and random numbers are timed"
            " (--sample MODULE:FUNCTION gives better ones)",
        )  # fmt: skip
    return tuple(x[:MAX_SAMPLES] for x in inputs), tuple(y[:MAX_SAMPLES] for y in targets), ()


def _loss(source: Source) -> LossFunction:
    """The job's loss, tried on the outputs of the unsplit model."""
    segment, _ = whole_segment(source.traced)
    inputs, targets = resized(source.inputs, source.targets, max(2, len(source.inputs[0])))
    with states_kept(), torch.no_grad():
        outputs = tensors_of(segment(*inputs))
    loss = make_loss(source.spec, source.loss, outputs, targets)
    return loss.of_model if isinstance(loss, PortableLoss) else loss


def _made_up(inputs: Tensors, targets: Tensors) -> tuple[Tensors, Tensors]:
    """Random numbers in place of floating-point inputs that are all alike: zeros compute and pack oddly."""
    if varies(inputs):
        return inputs, targets
    inputs, targets = resized(inputs, targets, max(2, len(inputs[0])))
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=x.dtype) if x.is_floating_point() else x
        for x in inputs
    ), targets


def names_of(cuts: Sequence[str]) -> str:
    """Return the cuts as they are written in a job file."""
    return "[" + ", ".join(f'"{cut}"' for cut in cuts) + "]"
