"""Make a job's parts from the user's model: cut it, try it, pack it."""

from __future__ import annotations

from pathlib import Path

import structlog
import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import Value
from spliteasy.graph.segment import Segment
from spliteasy.graph.tensors import tensors_to_bytes
from spliteasy.job.io_schema import SampleSpec, Signature
from spliteasy.job.source import Source, Tensors, load_source, make_loss
from spliteasy.job.spec import JobSpec
from spliteasy.planning.planner import plan_source
from spliteasy.privacy.ends import Ends, Role
from spliteasy.privacy.made import make_ends
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.losses import PortableLoss
from spliteasy.splitting.split import Split, split_traced


def create_parts(spec: JobSpec, root: Path | None) -> dict[str, bytes]:
    """The parts of the job's package, by name. Equal models give equal bytes. Raises JobError.

    Cuts that are "auto" are planned first, and the spec in the package names them.
    """
    source = load_source(spec, root)
    if spec.model.auto:
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"cuts": plan_source(source).best.cuts})}
        )
    inputs, targets = source.inputs, source.targets
    split = split_traced(source.traced, spec.model.cuts, share_inputs=source.shared_inputs)
    for note in split.notes:
        structlog.get_logger(__name__).warning(note)
    outputs = _outputs(split, inputs)
    loss = make_loss(spec, root, outputs, targets)
    signature = Signature(
        inputs=_described(spec.model.inputs, inputs),
        targets=_described(spec.model.targets, targets),
        outputs=_described([f"output{place}" for place in range(len(outputs))], outputs),
    )
    parts = {"spec.json": spec.to_json(), "signature.json": signature.to_json()}
    ends = _ends_of(source, split)
    parts["ends.json"] = ends.to_json()
    for segment in split.segments:
        drawn = ends.of(segment.name)
        kept = {name: tensor for name, tensor in segment.tensors().items() if name not in drawn}
        parts[f"{segment.name}.json"] = segment.graph_json()
        parts[f"{segment.name}.safetensors"] = tensors_to_bytes(kept)
    if isinstance(loss, PortableLoss):
        parts["loss.json"] = loss.graph_json()
        parts["loss.safetensors"] = tensors_to_bytes(loss.tensors())
    return parts


def _ends_of(source: Source, split: Split) -> Ends:
    """What of head and tail devices draw themselves."""
    segments: dict[Role, Segment] = {"head": split.head}
    if split.tail is not None:
        segments["tail"] = split.tail
    traces = (source.traced.eval, source.traced.train)
    originals = {info.names[0]: info.tensor for trace in traces for info in trace.tensors.values()}
    return make_ends(source.recording, segments, originals, public=source.spec.privacy.ends == "public")


def _outputs(split: Split, inputs: Tensors) -> Tensors:
    """What the segments give for the example, in training; evaluation must give the like."""
    in_training = _run(split, inputs, training=True)
    in_evaluation = _run(split, inputs, training=False)
    shapes = [[(value.dtype, value.shape) for value in values] for values in (in_training, in_evaluation)]
    if shapes[0] != shapes[1]:
        raise JobError(
            "the model gives other outputs in evaluation than in training, so that one loss can't take both",
            hint="let its forward return the same outputs in both modes",
        )
    return in_training


@torch.no_grad()
def _run(split: Split, inputs: Tensors, *, training: bool) -> Tensors:
    """The outputs of copies of the segments: running statistics stay as they are."""
    head, *rest = (segment.spawn().train(training) for segment in split.segments)
    values: tuple[Value, ...] = tuple(torch.cat((x, x)) if x.shape[0] == 1 else x for x in inputs)
    with states_kept():
        values = head(*values)
        wire, stay = values[: head.n_wire], values[head.n_wire :]
        for segment in rest:
            wire = segment(*wire, *(stay if segment is not rest[0] else ()))
    outputs = tuple(value for value in wire if isinstance(value, Tensor) and value.dim())
    if len(outputs) != len(wire):
        raise JobError("the model returns what is not a batch", hint="return tensors with the batch first")
    return outputs


def _described(names: tuple[str, ...] | list[str], batch: Tensors) -> tuple[SampleSpec, ...]:
    return tuple(SampleSpec.of(name, tensor) for name, tensor in zip(names, batch, strict=True))
