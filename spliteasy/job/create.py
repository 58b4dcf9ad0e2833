"""Make a job's parts from the user's model: cut it, try it, pack it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog
import torch
from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.document import FreeDim, Value
from spliteasy.graph.lengths import FreeLength
from spliteasy.graph.segment import Segment
from spliteasy.graph.tensors import tensors_to_bytes
from spliteasy.job.io_schema import SampleSpec, Signature
from spliteasy.job.measure import measure_of
from spliteasy.job.micro_batches import micro_sizes
from spliteasy.job.recipe import check_recipe
from spliteasy.job.source import Source, Tensors, free_length, load_source, make_loss, make_metric_function
from spliteasy.job.sparse import check_sparse
from spliteasy.job.spec import JobSpec
from spliteasy.planning.planner import plan_source
from spliteasy.privacy.defences.dp import check_private
from spliteasy.privacy.defences.label_dp import classes_to_answer
from spliteasy.privacy.defences.marvell import check_two_classes
from spliteasy.privacy.defences.peer_labels import check_peer_labels
from spliteasy.privacy.defences.shuffle import check_shuffle
from spliteasy.privacy.defences.transforms import check_transforms
from spliteasy.privacy.ends import Ends, Role
from spliteasy.privacy.made import make_ends
from spliteasy.runtime.generators import states_kept
from spliteasy.splitting.losses import PortableLoss
from spliteasy.splitting.split import Split, split_traced
from spliteasy.splitting.trace import TensorInfo
from spliteasy.training.losses import LossFunction
from spliteasy.training.metrics import check_metrics


def create_parts(spec: JobSpec, root: Path | None, source: Source | None = None) -> dict[str, bytes]:
    """The parts of the job's package, by name. Equal models give equal bytes. Raises JobError.

    `source`: the job's model, where it was traced already, perhaps for other cuts or batches.

    Cuts that are "auto" are planned first, and the spec in the package names them.
    """
    source = load_source(spec, root) if source is None else replace(source, spec=spec)
    if spec.model.auto:
        spec = spec.model_copy(
            update={"model": spec.model.model_copy(update={"cuts": plan_source(source).best.cuts})}
        )
    inputs, targets = source.inputs, source.targets
    split = split_traced(source.traced, spec.model.cuts, share_inputs=source.shared_inputs)
    check_sparse(spec, [segment.program.document for segment in split.segments])
    for note in (*split.notes, *split.lookups):
        structlog.get_logger(__name__).warning(note)
    outputs = _outputs(split, inputs)
    free = _free_of_loss(spec, split)
    loss = make_loss(spec, source.loss, outputs, targets, free=free)
    if isinstance(loss, PortableLoss) and loss.own:
        split = split_traced(
            source.traced, spec.model.cuts, share_inputs=source.shared_inputs, loss_parameters=loss.own
        )
    least = least_samples(split, inputs)
    _check_parts_of_batches(spec, least)
    signature = Signature(
        inputs=_described(spec.model.inputs, inputs, free_length(spec, spec.model.inputs)),
        targets=_described(spec.model.targets, targets, free_length(spec, spec.model.targets)),
        outputs=_described([f"output{place}" for place in range(len(outputs))], outputs, free),
        least_samples=least,
    )
    if spec.data is not None:
        check_recipe(spec.data, signature)
    if spec.privacy.label_dp is not None:
        classes_to_answer(spec, signature)
    if spec.privacy.peer_labels:
        classes_to_answer(spec, signature, "peer_labels")
        check_peer_labels(signature)
    if spec.privacy.marvell is not None:
        check_two_classes(spec, signature)
    if spec.privacy.dp is not None:
        check_private(list(split.segments), least)
    if spec.privacy.shuffle_tokens:
        check_shuffle(split.head, split.body, split.tail)
    check_transforms(spec.privacy, split.head, split.tail)
    parts = {"spec.json": spec.to_json(), "signature.json": signature.to_json()}
    ends = _ends_of(source, split, loss.own if isinstance(loss, PortableLoss) else ())
    parts["ends.json"] = ends.to_json()
    for segment in split.segments:
        drawn = ends.of(segment.name)
        kept = {name: tensor for name, tensor in segment.tensors().items() if name not in drawn}
        parts[f"{segment.name}.json"] = segment.graph_json()
        parts[f"{segment.name}.safetensors"] = tensors_to_bytes(kept)
    if isinstance(loss, PortableLoss):
        parts["loss.json"] = loss.graph_json()
        parts["loss.safetensors"] = tensors_to_bytes(loss.tensors())
    return parts | _metric_parts(spec, root, loss, outputs, targets, free)


def _metric_parts(
    spec: JobSpec,
    root: Path | None,
    loss: LossFunction,
    outputs: Tensors,
    targets: Tensors,
    free: FreeLength | None,
) -> dict[str, bytes]:
    """The metrics that are functions, traced; those that have a name are tried on the example."""
    matching = tuple(torch.cat((y, y)) if y.shape[0] == 1 else y for y in targets)
    own = tuple(info.tensor for info in loss.own) if isinstance(loss, PortableLoss) else ()
    check_metrics(spec.evaluation.metrics, loss, measure_of(spec, loss), (*outputs, *own), matching)
    parts = {}
    for place, reference in enumerate(spec.evaluation.functions):
        metric = make_metric_function(reference, root, outputs, matching, free=free)
        parts[f"metric{place}.json"] = metric.graph_json()
        parts[f"metric{place}.safetensors"] = tensors_to_bytes(metric.tensors())
    return parts


def _ends_of(source: Source, split: Split, loss_parameters: Sequence[TensorInfo]) -> Ends:
    """Return which tensors of head and tail the devices draw themselves."""
    segments: dict[Role, Segment] = {"head": split.head}
    if split.tail is not None:
        segments["tail"] = split.tail
    traces = (source.traced.eval, source.traced.train)
    originals = {info.names[0]: info.tensor for trace in traces for info in trace.tensors.values()}
    originals |= {info.names[0]: info.tensor for info in loss_parameters}
    return make_ends(source.recording, segments, originals, public=source.spec.privacy.ends == "public")


def _outputs(split: Split, inputs: Tensors) -> Tensors:
    """Return the outputs of the segments for the example, in training. Evaluation must give values of the
    same kind."""
    in_training = _run(split, inputs, training=True)
    in_evaluation = _run(split, inputs, training=False)
    _check_batches(split)
    shapes = [[(value.dtype, value.shape) for value in values] for values in (in_training, in_evaluation)]
    if shapes[0] != shapes[1]:
        raise JobError(
            "the model gives other outputs in evaluation than in training, so that one loss can't take both",
            hint="let its forward return the same outputs in both modes",
        )
    return in_training


def _free_of_loss(spec: JobSpec, split: Split) -> FreeLength | None:
    """Return which dimensions of the model's outputs, then of the targets, have the length of the samples.

    Raises JobError for an output with a size that is not their length, but follows from it.
    """
    of_targets = free_length(spec, spec.model.targets)
    if of_targets is None:
        return None
    found = []
    for place, value in enumerate(split.segments[-1].output_values):
        dims = [(at, dim) for at, dim in enumerate(value.shape[1:], start=1) if isinstance(dim, FreeDim)]
        for _, dim in dims:
            if dim != FreeDim(length=1):
                raise JobError(
                    f"output {place} of the model, {value.name}, has a size that follows from the length of "
                    "the samples and is another number",
                    hint="return tensors of the length of the inputs, or of none",
                )
        found.append(tuple(at for at, _ in dims))
    return FreeLength((*found, *of_targets.dims), of_targets.longest)


def _check_batches(split: Split) -> None:
    """Every output is a batch of samples. Raises JobError."""
    for place, spec in enumerate(split.segments[-1].output_values):
        if spec.shape[:1] != (FreeDim(batch=1),):
            raise JobError(
                f"output {place} of the model, {spec.name}, has no batch as its first dimension",
                hint="return tensors with the batch first; a parameter that the loss needs belongs to the"
                " loss, as an nn.Module named in loss.function",
            )


def least_samples(split: Split, inputs: Tensors) -> int:
    """The fewest samples that can be trained on at once: 2 where one alone has no statistics, else 1."""
    pair = tuple(torch.cat((x, x))[:2] for x in inputs)
    alone = tuple(x[:1] for x in inputs)
    return 2 if _stays_finite(split, pair) and not _stays_finite(split, alone) else 1


def _stays_finite(split: Split, inputs: Tensors) -> bool:
    """Return whether a training forward can be computed and makes no NaN in outputs and buffers."""
    copies = [segment.spawn().train() for segment in split.segments]
    try:
        outputs = _through(copies, inputs)
    except (RuntimeError, ValueError, IndexError):
        return False
    buffers = [buffer for segment in copies for buffer in segment.buffers()]
    return not any(bool(t.isnan().any()) for t in (*outputs, *buffers) if t.is_floating_point())


def _check_parts_of_batches(spec: JobSpec, least: int) -> None:
    """Refuse whole batches whose parts the model can't be trained on. Raises JobError."""
    smallest = min(micro_sizes(spec.batch_size, spec.micro_batches))
    if smallest >= least:
        return
    parts = f" in micro_batches = {spec.micro_batches} parts" if spec.micro_batches > 1 else ""
    raise JobError(
        f"batch_size = {spec.batch_size}{parts} gives the model {smallest} sample at a time, which can't "
        "train it: batch norm needs 2 samples to have a variance",
        hint=f"set micro_batches = {spec.batch_size // least} or fewer, or freeze the batch norm (eval mode)"
        if spec.batch_size >= least
        else "set batch_size = 2 or more, or freeze the batch norm (eval mode)",
    )


def _run(split: Split, inputs: Tensors, *, training: bool) -> Tensors:
    """The outputs of copies of the segments: running statistics stay as they are."""
    values = tuple(torch.cat((x, x)) if x.shape[0] == 1 else x for x in inputs)
    return _through([segment.spawn().train(training) for segment in split.segments], values)


@torch.no_grad()
def _through(segments: Sequence[Segment], inputs: Tensors) -> Tensors:
    """The outputs of the segments, one after the other."""
    head, *rest = segments
    values: tuple[Value, ...] = inputs
    with states_kept():
        values = head(*values)
        wire, stay = values[: head.n_wire], values[head.n_wire :]
        for segment in rest:
            wire = segment(*wire, *(stay if segment is not rest[0] else ()))
    outputs = tuple(value for value in wire if isinstance(value, Tensor) and value.dim())
    if len(outputs) != len(wire):
        raise JobError("the model returns what is not a batch", hint="return tensors with the batch first")
    return outputs


def _described(
    names: tuple[str, ...] | list[str], batch: Tensors, free: FreeLength | None
) -> tuple[SampleSpec, ...]:
    dims = free.dims if free is not None else ((),) * len(batch)
    return tuple(
        SampleSpec.of(name, tensor, [dim - 1 for dim in own])
        for name, tensor, own in zip(names, batch, dims, strict=False)
    )
