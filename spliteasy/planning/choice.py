"""Predict a step at every cut or pair of cuts, and choose the best that keeps to the constraints.

A step of a session is strictly one thing after the other: head, up, body, down, tail forward and
backward, up, body backward and step, down, head backward and step. So its time is a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from spliteasy.errors import CutError, JobError
from spliteasy.job.spec import JobSpec, SgdSpec
from spliteasy.planning.conditions import Conditions, Constraints
from spliteasy.planning.correlation import InputCorrelation
from spliteasy.planning.costs import KINDS, Numbers, OperatorCosts
from spliteasy.planning.flow import Flow, position_of
from spliteasy.planning.leaks import Judge, Layers, Leak, reaches
from spliteasy.planning.relaxation import Relaxing
from spliteasy.planning.wire_costs import WireCosts
from spliteasy.splitting.export import TracedModel
from spliteasy.splitting.rules import regrouped_sums
from spliteasy.splitting.split import cut_trace, partitions, split_traced
from spliteasy.splitting.trace import TENSOR

BYTES = 4
"""The size of a parameter."""
MEMORY_KIND = KINDS.index("memory")
TRANSIENT = 1.5
"""Peak of an operator's backward over what it reads and writes (measured 1.2 to 1.6: kernels copy)."""
TRIES = 50
"""Candidates of one first cut that are cut for real until one is legal."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The costs of one cut, or of a pair, in a step of a whole batch. Seconds are predicted."""

    cuts: tuple[str, ...]
    depths: tuple[float, ...]
    """Positions as fractions of all operators."""
    bytes_up: int
    bytes_down: int
    parameters: tuple[int, ...]
    """Per segment."""
    head_layers: int
    device_s: float
    server_s: float
    link_s: float
    step_s: float
    memory_bytes: int
    """Peak on the device: weights, gradients, optimizer, what the backward needs, messages."""
    correlation: float | None
    violates: tuple[str, ...]
    """The constraints that it does not keep to."""
    why: str | None = None
    """The measure that breaks `[privacy.limits]`, where "limits" is among these."""


@dataclass(slots=True)
class Estimates:
    """Entry i is the pair (first, place i), or the single cut at place i."""

    first: int | None
    bytes_up: Numbers
    bytes_down: Numbers
    device_s: Numbers
    server_s: Numbers
    link_s: Numbers
    memory: Numbers
    valid: Mask

    @property
    def step_s(self) -> Numbers:
        return self.device_s + self.server_s + self.link_s

    def places(self, index: int) -> tuple[int, ...]:
        return (index,) if self.first is None else (self.first, index)


class Chooser:
    """All cuts of one model under one set of conditions."""

    def __init__(
        self,
        traced: TracedModel,
        spec: JobSpec,
        flow: Flow,
        costs: OperatorCosts,
        wire: WireCosts,
        *,
        shared: Sequence[str],
        conditions: Conditions,
        constraints: Constraints,
        label_bytes: int,
        correlation: InputCorrelation | None,
        leaks: Sequence[Leak] = (),
        judge: Judge = lambda _: (),
    ) -> None:
        """`leaks`: those that are known. `judge`: looks at each cut that would be proposed."""
        self._traced, self._spec, self._flow, self._wire = traced, spec, flow, wire
        self._shared, self._conditions, self._constraints = shared, conditions, constraints
        self._label_bytes, self._correlation = label_bytes, correlation
        self._judge = judge
        self._read(costs)
        self._leaks: list[tuple[Leak, Layers]] = []
        for leak in leaks:
            with suppress(CutError):  # of a model that had this place
                self._leaks.append((leak, self._layers(self._places(leak.cuts))))

    def _read(self, costs: OperatorCosts) -> None:
        """Prefix sums at the places: time on the device and on the server, weights, memory."""
        flow, conditions = self._flow, self._conditions
        slow = 1.0 / np.array(conditions.device_speed)[costs.kinds]
        both = costs.forward_s + costs.backward_s
        self._device = flow.sums(both * slow)
        self._device_whole = float((both * slow).sum())
        self._server = flow.sums(both) / conditions.server_speed
        self._server_whole = float(both.sum()) / conditions.server_speed
        self._loss_s = costs.loss_s
        weights, trainable, layers = self._weights(flow.count)
        self._weights_at, self._trainable_at = flow.sums(weights), flow.sums(trainable)
        self._weights_whole, self._trainable_whole = weights.sum(), trainable.sum()
        self._layers_at, self._layers_whole = flow.sums(layers), layers.sum()
        self._apply_each_s = costs.apply_s / max(1.0, self._trainable_whole)
        self._saved_head = flow.sums(costs.saved_first)
        self._saved_tail = costs.saved_last.sum() - flow.sums(costs.saved_last)
        working = TRANSIENT * costs.working + BYTES * weights
        self._working_head = np.maximum.accumulate(working)[flow.positions]
        behind = np.concatenate((np.maximum.accumulate(working[::-1])[::-1], [0.0]))
        self._working_tail = behind[flow.positions + 1]

    def _weights(self, count: int) -> tuple[Numbers, Numbers, Numbers]:
        """Parameters, trainable ones, and modules with weights that end, at each operator."""
        weights, trainable, layers = (np.zeros(count) for _ in range(3))
        used: dict[str, int] = {}
        seen = set()
        for op in self._flow.trace.ops:
            for tensor in op.uses:
                if tensor.target != TENSOR or op not in self._flow.trace.live:
                    continue
                info = self._flow.trace.tensors[tensor]
                if info.kind != "parameter":
                    continue
                at = max(0, position_of(op))
                if info.tensor.dim() > 1:
                    used[info.names[0].rpartition(".")[0]] = at
                if tensor not in seen:
                    seen.add(tensor)
                    weights[at] += info.tensor.numel()
                    trainable[at] += info.tensor.numel() * info.tensor.requires_grad
        for at in used.values():
            layers[at] += 1
        return weights, trainable, layers

    def choose(self) -> tuple[list[Cut], Cut]:
        """Return the best legal cut behind each place, in order, and the best of them all.

        Cuts at which an input would cross in disguise are looked for among the best only, and marked.
        Raises CutError where no cut keeps to the constraints, saying which one to relax.
        """
        while True:
            rows, best = self._choose()
            found = self._judge(best.cuts)
            if not found:
                return rows, best
            layers = self._layers(self._places(best.cuts))
            self._leaks += [(leak, layers) for leak in found]

    def _choose(self) -> tuple[list[Cut], Cut]:
        """`choose` by what is known of leaks so far."""
        relaxing = Relaxing(self._constraints)
        rows = []
        for group in self._groups():
            row = self._best_of(group, relaxing)
            if row is not None:
                rows.append(row)
        if not rows:
            raise CutError("the model has no place where it can be cut", hint="docs/own-model.md says why")
        fitting = sorted(
            (row for row in rows if not row.violates), key=lambda row: (row.step_s, row.memory_bytes)
        )
        if not fitting:
            if any(row.violates == ("limits",) for row in rows):
                last = self._leaks[-1][0]
                raise CutError(
                    "no cut is left that may keep to [privacy.limits] and to the other constraints; "
                    f"at {' | '.join(last.cuts)}: {last.why}",
                    hint="add a defence (docs/privacy.md), or raise the limit",
                )
            raise relaxing.error()
        refusals = []
        for row in fitting:
            refused = self._refused(row)
            if refused is None:
                return rows, row
            refusals.append(refused)
            rows[rows.index(row)] = replace(row, violates=("disguise",))
        raise refusals[0]

    def _refused(self, row: Cut) -> CutError | None:
        """Why the model would not be split there: an input would cross in disguise, say."""
        try:
            split_traced(self._traced, row.cuts, share_inputs=self._shared)
        except CutError as error:
            return error
        return None

    def at(self, cuts: Sequence[str]) -> Cut:
        """Return the costs of these cuts. Raises CutError where they can't be right."""
        partitions(self._traced, tuple(cuts), self._shared)
        places = self._places(cuts)
        group = self._pairs(places[0]) if len(places) == 2 else self._singles()
        return self._row(group, places[-1], tuple(cuts))

    def _places(self, cuts: Sequence[str]) -> tuple[int, ...]:
        """Return where these cuts are. Raises CutError where the model has no such place."""
        ends = cut_trace(self._traced.train, cuts, self._traced.paths).ends
        return tuple(int(np.searchsorted(self._flow.positions, end)) for end in ends)

    def _layers(self, places: tuple[int, ...]) -> Layers:
        return Layers(places, float(self._layers_at[places[0]]), self._tail_layers(places))

    def _leak(self, places: tuple[int, ...]) -> Leak | None:
        """Return what is known to leak at these places."""
        here = self._layers(places)
        return next((leak for leak, at in self._leaks if reaches(leak, at, here)), None)

    def _groups(self) -> Iterator[Estimates]:
        """Cuts of which one is shown: for each first cut all second ones, or each single cut alone."""
        if self._spec.single:
            singles = self._singles()
            for index in np.flatnonzero(singles.valid):
                alone = np.zeros_like(singles.valid)
                alone[index] = True
                yield Estimates(
                    None, singles.bytes_up, singles.bytes_down, singles.device_s, singles.server_s,
                    singles.link_s, singles.memory, alone,
                )  # fmt: skip
        else:
            for first in range(len(self._flow.places)):
                yield self._pairs(first)

    def _best_of(self, group: Estimates, relaxing: Relaxing) -> Cut | None:
        """The quickest legal one that fits; if none fits, the quickest legal one."""
        order = np.argsort(group.step_s, kind="stable")
        candidates = [int(index) for index in order if group.valid[index]]
        measures = {index: self._measures(group, index) for index in candidates}
        leaking = {index: self._leak(group.places(index)) is not None for index in candidates}
        candidates.sort(key=lambda index: leaking[index] or bool(relaxing.violated(measures[index])))
        found: Cut | None = None
        for index in candidates[:TRIES]:
            if self._is_legal(group.places(index)):
                found = self._row(group, index)
                break
        if found is None:
            return None
        for index in candidates:
            relaxing.note(measures[index])
        return found

    def _measures(self, group: Estimates, index: int) -> dict[str, float]:
        """Return the values that the constraints bound, by the names of the constraints."""
        first = group.places(index)[0]
        measures = {
            "device_memory": float(group.memory[index]),
            "min_head_layers": float(self._layers_at[first]),
            "min_tail_layers": self._tail_layers(group.places(index)),
        }
        if self._correlation is not None and self._constraints.max_input_correlation is not None:
            measures["max_input_correlation"] = self._correlation_at(group.places(index))
        return measures

    def _tail_layers(self, places: tuple[int, ...]) -> float:
        """Modules with weights behind the second cut; none behind a single one, which ends at the server."""
        return float(self._layers_whole - self._layers_at[places[1]]) if len(places) == 2 else 0.0

    def _correlation_at(self, places: tuple[int, ...]) -> float:
        assert self._correlation is not None, "asked for only where there is a sample"
        return self._correlation.of(self._flow.sent_up(*places))

    def _is_legal(self, places: tuple[int, ...]) -> bool:
        """Cut for real. What adds gradients in another order would not give the same bits: left out."""
        names = tuple(self._flow.places[place].cut for place in places)
        try:
            _, train, _ = partitions(self._traced, names, self._shared)
        except JobError:
            return False
        return not regrouped_sums(train)

    def _row(self, group: Estimates, index: int, names: tuple[str, ...] | None = None) -> Cut:
        places = group.places(index)
        leak = self._leak(places)
        ends = [self._weights_at[place] for place in places]
        bounds = np.diff([0.0, *ends, self._weights_whole])
        return Cut(
            cuts=names or tuple(self._flow.places[place].cut for place in places),
            depths=tuple(self._flow.places[place].depth for place in places),
            bytes_up=round(group.bytes_up[index]),
            bytes_down=round(group.bytes_down[index]),
            parameters=tuple(int(count) for count in bounds),
            head_layers=int(self._layers_at[places[0]]),
            device_s=float(group.device_s[index]),
            server_s=float(group.server_s[index]),
            link_s=float(group.link_s[index]),
            step_s=float(group.step_s[index]),
            memory_bytes=int(group.memory[index]),
            correlation=None if self._correlation is None else self._correlation_at(places),
            violates=Relaxing(self._constraints).violated(self._measures(group, index))
            + (("limits",) if leak else ()),
            why=f"{leak.why} at {' | '.join(leak.cuts)}" if leak else None,
        )

    def _singles(self) -> Estimates:
        """One cut: labels go up, the server has the loss; one round trip."""
        flow, wire, conditions = self._flow, self._wire, self._conditions
        up = flow.live(wire.activation_bytes, False) + self._label_bytes
        down = flow.live(wire.gradient_bytes, True)
        packing = flow.live(wire.activation_s, False) + flow.live(wire.gradient_s, True)
        apply_s = self._apply_each_s * self._trainable_at
        server_s = self._server_whole - self._server + self._loss_s / conditions.server_speed
        server_s = server_s + self._apply_each_s * (self._trainable_whole - self._trainable_at)
        valid = np.array([not any(flow.values[v].barred for v in place.crossing) for place in flow.places])
        valid &= self._weights_at < self._weights_whole
        memory = self._memory(self._weights_at, self._trainable_at)
        return Estimates(
            first=None,
            bytes_up=up,
            bytes_down=down,
            device_s=self._device + self._on_device(apply_s + packing),
            server_s=server_s + packing / conditions.server_speed,
            link_s=self._link(up, down, 1),
            memory=memory + self._saved_head + self._working_head + up + down,
            valid=valid,
        )

    def _pairs(self, first: int) -> Estimates:
        """Two cuts: two round trips."""
        flow, wire, conditions = self._flow, self._wire, self._conditions
        forth, arriving = flow.pairs_from(first, wire.activation_bytes, False)
        back, leaving = flow.pairs_from(first, wire.gradient_bytes, True)
        packing = sum(
            (
                *flow.pairs_from(first, wire.activation_s, False),
                *flow.pairs_from(first, wire.gradient_s, True),
            ),
            np.zeros(len(flow.places)),
        )
        weights = self._weights_at[first] + self._weights_whole - self._weights_at
        trainable = self._trainable_at[first] + self._trainable_whole - self._trainable_at
        compute_s = self._device[first] + self._device_whole - self._device
        server_s = self._server - self._server[first]
        server_s = (
            server_s + self._apply_each_s * (self._trainable_whole - trainable) / conditions.server_speed
        )
        memory = self._memory(weights, trainable) + self._saved_head[first] + forth
        in_tail = self._saved_tail + self._working_tail + arriving + leaving
        valid = np.arange(len(flow.places)) > first
        valid[flow.barred_from(first) :] = False
        valid &= self._weights_at > self._weights_at[first]  # else the server would have nothing to do
        up, down = forth + leaving, arriving + back
        return Estimates(
            first=first,
            bytes_up=up,
            bytes_down=down,
            device_s=compute_s + self._on_device(self._apply_each_s * trainable + packing + self._loss_s),
            server_s=server_s + packing / conditions.server_speed,
            link_s=self._link(up, down, 2),
            memory=memory + np.maximum(self._working_head[first] + back, in_tail),
            valid=valid,
        )

    def _link(self, up: Numbers, down: Numbers, round_trips: int) -> Numbers:
        conditions = self._conditions
        each = round_trips * (conditions.rtt_s + conditions.round_trip_s)
        return (
            each
            + up / conditions.up_bytes_s
            + down / conditions.down_bytes_s
            + conditions.byte_s * (up + down)
        )

    def _on_device(self, here_s: Numbers) -> Numbers:
        """Work that passes over memory once: packing, the optimizer, the loss."""
        return here_s / self._conditions.device_speed[MEMORY_KIND]

    def _memory(self, weights: Numbers, trainable: Numbers) -> Numbers:
        """Weights, gradients and the optimizer's state."""
        optimizer = self._spec.optimizer
        states = (1 if optimizer.momentum else 0) if isinstance(optimizer, SgdSpec) else 2
        return BYTES * (weights + (1 + states) * trainable)
