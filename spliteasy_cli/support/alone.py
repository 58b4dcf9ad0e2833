"""The accuracy that each device of a fleet would reach alone, by the same steps in plain PyTorch.

Training split is the same training to the last bit, so that this is what `mode = "personal"` would give.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from device_agent.config import AgentConfig
from device_agent.state_folder import StateFolder
from device_agent.training.data import BatchOrder, EvaluationBatches, load_dataset
from device_agent.training.ends import initial_ends, job_key, label_key
from spliteasy.errors import UserError
from spliteasy.job import Job
from spliteasy.job.source import build_model, users_loss
from spliteasy.training.losses import LOSSES
from spliteasy.training.reference import PlainTraining

Points = list[tuple[int, float]]
"""(step, accuracy on the device's test data)."""

EVALUATIONS = 6


async def accuracies_alone(
    job: Job, root: Path, configs: Sequence[AgentConfig], stop: asyncio.Event
) -> dict[str, Points]:
    """Return the accuracy of each device that trains alone, as it goes; none where that can't be measured.

    Runs the user's model code. Raises UserError where it was stopped.
    """
    found = {}
    for config in configs:
        found[config.device] = await asyncio.to_thread(_alone, job, root, config, stop.is_set)
    return found


def _alone(job: Job, root: Path, config: AgentConfig, stopped: Callable[[], bool]) -> Points:
    spec, device = job.spec, config.device
    lasting = spec if config.epochs is None else spec.model_copy(update={"epochs": config.epochs})
    with StateFolder(config.state) as state:
        secret = state.secret()
        key, labels = job_key(secret, device=device, job=job.digest), label_key(secret)
        ends = initial_ends(job, state, key, refuse_public=False)
    data = load_dataset(config.data, device, job.signature, root=root, recipe=spec.data)
    batches = BatchOrder(data.train, lasting, job.signature, device=device, key=key, labels=labels)
    if data.test is None:
        return []
    tests = EvaluationBatches(data.test, spec, job.signature, device=device, key=key)
    model, _, _ = build_model(spec, root)
    loss = LOSSES[spec.loss.name] if spec.loss.name is not None else users_loss(spec, root)
    training = PlainTraining(job, model, loss, device=device, key=key, ends=ends)
    points, total = Points(), batches.total_steps
    due = {round(total * n / EVALUATIONS) for n in range(1, EVALUATIONS + 1)}
    for step in range(1, total + 1):
        if stopped():
            raise UserError("stopped before each device was trained alone", hint="leave --alone out")
        training.step(*batches.batch(step))
        if step in due and (accuracy := _accuracy(job, model, tests, step)) is not None:
            points.append((step, accuracy))
    return points


@torch.no_grad()
def _accuracy(job: Job, model: torch.nn.Module, tests: EvaluationBatches, step: int) -> float | None:
    """Return the share of predictions that are right; None where the job has no such thing."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    right = counted = 0
    try:
        for index in range(len(tests)):
            inputs, targets = tests.batch(index, step)
            outputs = tuple(leaf for leaf in tree_leaves(model(*inputs)) if isinstance(leaf, Tensor))
            judged = job.measure.right(outputs, targets)
            if judged is None:
                return None
            right, counted = right + judged[0], counted + judged[1]
    finally:
        for module, training in modes.items():
            module.training = training
    return right / counted if counted else None
