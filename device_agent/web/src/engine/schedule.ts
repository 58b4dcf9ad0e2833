/** Learning-rate schedules: pure functions of the step, as `spliteasy/training/schedule.py`. */

import type { ScheduleSpec } from "./types.ts";

/** The factor of the learning rate in training step `step`; 1 is the first. */
export function factor(schedule: ScheduleSpec, step: number): number {
  const warmup = schedule.warmup_steps ?? 0;
  if (step < 1) throw new RangeError(`steps count from 1, not from ${step}`);
  if (step <= warmup) return step / warmup;
  const done = step - 1 - warmup;
  if (schedule.name === "step") return (schedule.gamma ?? 0.1) ** Math.floor(done / schedule.step_size);
  if (schedule.name === "cosine") {
    const progress = Math.min(1, done / (schedule.steps - warmup));
    const low = schedule.min_factor ?? 0;
    return low + (1 - low) * 0.5 * (1 + Math.cos(Math.PI * progress));
  }
  return 1;
}
