"""Learning-rate schedules: pure functions of the step, so that a resumed training needs no state."""

from __future__ import annotations

import math

from spliteasy.job.spec import CosineSpec, ScheduleSpec, StepSpec


def factor(schedule: ScheduleSpec, taken: int) -> float:
    """What the learning rate is multiplied by after `taken` optimizer steps (0: for the first step).

    The function that a user would give to `torch.optim.lr_scheduler.LambdaLR`.
    """
    if taken < schedule.warmup_steps:
        return (taken + 1) / schedule.warmup_steps
    done = taken - schedule.warmup_steps
    if isinstance(schedule, StepSpec):
        return float(schedule.gamma ** (done // schedule.step_size))
    if isinstance(schedule, CosineSpec):
        progress = min(1.0, done / (schedule.steps - schedule.warmup_steps))
        low = schedule.min_factor
        return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
