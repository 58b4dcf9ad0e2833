"""The measure that belongs to a job's loss."""

from __future__ import annotations

from spliteasy.job.spec import JobSpec
from spliteasy.training.losses import LossFunction
from spliteasy.training.measures import Measure, named_measure


def measure_of(spec: JobSpec, loss: LossFunction) -> Measure:
    """Return what can be counted beside the job's loss."""
    if spec.loss.name is not None:
        return named_measure(spec.loss.name)
    from spliteasy.splitting.losses import PortableLoss
    from spliteasy.training.traced_measure import traced_measure

    assert isinstance(loss, PortableLoss), "a loss without a name is traced"
    outputs = max(0, len(loss.input_values) - len(spec.model.targets))  # the loss's own parameters among them
    return traced_measure(loss.document, tuple(loss.tensors().values()), outputs)
