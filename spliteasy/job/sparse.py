"""Sparse gradients of embeddings: which optimizers can take them, and what to do where they can't."""

from __future__ import annotations

from spliteasy.errors import JobError
from spliteasy.graph.document import Document, Ref
from spliteasy.graph.encoding import decode_argument
from spliteasy.job.spec import JobSpec, SgdSpec
from spliteasy.training.optim import group_of

_SPARSE_ARGUMENT = {"aten.embedding.default": 4, "aten.embedding_bag.default": 5}
"""The place of the argument `sparse` in each operator that may give a sparse gradient."""


def check_sparse(spec: JobSpec, documents: list[Document]) -> None:
    """Refuse embeddings with sparse=True where the optimizer needs dense gradients. Raises JobError."""
    for document in documents:
        for name in _sparse_weights(document):
            reason = _why_dense(spec, name)
            if reason is not None:
                raise JobError(
                    f"the embedding {name} has sparse=True, and {reason} can't take a sparse gradient",
                    hint="set sparse=False (the gradient is the same, with its zeros), or use sgd without "
                    "momentum, weight_decay and clip",
                )


def _sparse_weights(document: Document) -> list[str]:
    """The trainable weights that get a sparse gradient in training."""
    found = []
    for node in document.train.nodes:
        place = _SPARSE_ARGUMENT.get(node.op)
        if place is None:
            continue
        sparse = node.args[place] if place < len(node.args) else node.kwargs.get("sparse", False)
        weight = decode_argument(node.args[0]) if node.args else None
        if sparse and isinstance(weight, Ref) and weight.slot < len(document.tensors):
            tensor = document.tensors[weight.slot]
            if tensor.requires_grad:
                found.append(tensor.name)
    return found


def _why_dense(spec: JobSpec, name: str) -> str | None:
    """Say what of the job's training needs a dense gradient of the parameter, or None where nothing does."""
    optimizer, group = spec.optimizer, group_of(spec.optimizer, name)
    if not isinstance(optimizer, SgdSpec):
        return optimizer.name
    if spec.accumulate > 1:
        return "accumulate"
    decay = optimizer.weight_decay if group is None or group.weight_decay is None else group.weight_decay
    for setting, value in (("momentum", optimizer.momentum), ("weight_decay", decay)):
        if value:
            return f"sgd with {setting}"
    return "[clip]" if spec.clip is not None else None
