"""The rule by which a batch is split into micro-batches (the job's `micro_batches`), and the share of each in
the step's loss.

The parts follow from the batch's size alone, so that device, worker and the training in one process
agree. A step's loss is the sum of the micro-batches' mean losses, each times its share
(`spliteasy.measures.Measure.shares`): its labelled elements of the batch's where the loss leaves ignored
labels out, else its samples of the batch's. The sum is the loss's mean over the whole batch. Gradients are
added up in the order of the micro-batches, by one backward each; a micro-batch without a labelled element
has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

MAX_MICRO_BATCHES = 16


def micro_sizes(samples: int, micro_batches: int) -> tuple[int, ...]:
    """Samples of each micro-batch: as equal as can be, the larger ones first, none empty.

    A batch of fewer samples than `micro_batches` has one micro-batch a sample.
    """
    count = min(samples, micro_batches)
    least, more = divmod(samples, count)
    return (least + 1,) * more + (least,) * (count - more)


def share_of(counted: float, batch: float) -> float:
    """Return the share of a micro-batch in the batch's loss: `counted` of the batch's samples or labelled
    elements."""
    return counted / batch


def split_batch(tensors: Sequence[Tensor], micro_batches: int) -> list[tuple[Tensor, ...]]:
    """The tensors of each micro-batch: consecutive rows, in memory of their own.

    Copies, because kernels may give other bits for other alignments, and on the wire all is aligned.
    """
    samples = tensors[0].shape[0]
    sizes = micro_sizes(samples, micro_batches)
    if len(sizes) == 1:
        return [tuple(tensors)]
    ends = list(accumulate(sizes))
    return [
        tuple(tensor[end - size : end].clone() for tensor in tensors)
        for size, end in zip(sizes, ends, strict=True)
    ]
