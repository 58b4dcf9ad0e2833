"""The unsplit model as one segment: to time it, and to look at its values."""

from __future__ import annotations

from spliteasy.graph.segment import Segment
from spliteasy.splitting.boundaries import Partition
from spliteasy.splitting.export import TracedModel
from spliteasy.splitting.split import assemble


def whole_segment(traced: TracedModel) -> tuple[Segment, list[int]]:
    """The unsplit model as a segment, and which operator of the trace each of its nodes is."""
    train, evaluation = (Partition(trace, ()).parts[0] for trace in (traced.train, traced.eval))
    infos = {op.name: info for trace in (traced.train, traced.eval) for op, info in trace.tensors.items()}
    segment = assemble("model", train, evaluation, list(infos.values()), longest=traced.longest)
    return segment, [op.index for op in train.ops]
