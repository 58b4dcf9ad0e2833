"""Learning-rate schedules: pure functions of the step, so that a resumed training needs no state."""

from __future__ import annotations

import math

from spliteasy.job.spec import CosineSpec, ScheduleSpec, StepSpec


def factor(schedule: ScheduleSpec, step: int) -> float:
    """Return the factor of the learning rate in training step `step` (1 is the first).

    A user of plain PyTorch gives `lambda epoch: factor(schedule, epoch + 1)` to `LambdaLR`.
    """
    if step < 1:
        raise ValueError(f"steps count from 1, not from {step}")
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    done = step - 1 - schedule.warmup_steps
    if isinstance(schedule, StepSpec):
        return float(schedule.gamma ** (done // schedule.step_size))
    if isinstance(schedule, CosineSpec):
        progress = min(1.0, done / (schedule.steps - schedule.warmup_steps))
        low = schedule.min_factor
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
