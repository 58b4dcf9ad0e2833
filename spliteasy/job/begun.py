"""A job whose body begins with weights that were trained before."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from spliteasy.errors import JobError
from spliteasy.graph.tensors import tensors_from_bytes, tensors_to_bytes
from spliteasy.job.package import BODY, Job, manifest_of

WEIGHTS = f"{BODY}safetensors"


def begun_from(job: Job, trained: Mapping[str, Tensor]) -> Job:
    """Return the job with these weights and buffers in its body, by the model's own names.

    Names that the body does not have are passed over: they are of head and tail. What `trained` lacks stays
    as the job has it. Raises JobError where a tensor has another shape or type, or none is the body's.
    """
    tensors = tensors_from_bytes(job.parts[WEIGHTS])
    found = {name: tensor for name, tensor in trained.items() if name in tensors}
    if not found:
        raise JobError(
            "nothing that was trained there has a name of this job's body",
            hint="name a version whose body has the same layers: see [model] cuts in both",
        )
    for name, tensor in found.items():
        like = tensors[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise JobError(
                f"{name} was trained as {tensor.dtype} of shape {list(tensor.shape)}, and this job has "
                f"{like.dtype} of shape {list(like.shape)}",
                hint="name a version of the same model",
            )
    parts = {**job.parts, WEIGHTS: tensors_to_bytes({**tensors, **found})}
    return Job.from_parts(manifest_of(job.name, parts, needs=job.needs()), parts)
