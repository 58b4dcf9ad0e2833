/** The end of a training that no longer improves, by one number of its evaluations: `device_agent/training/early_stopping.py`. */

import { Tensor } from "../protocol/tensor.ts";
import type { Spec } from "./job.ts";

/** The name of what a checkpoint keeps of it. */
export const STOPPING = "early-stopping";

const LOWER_IS_BETTER: readonly string[] = ["loss", "mae", "rmse", "perplexity"];

type EvaluationSpec = NonNullable<Spec["evaluation"]>;

export class EarlyStopping {
  /** The step of the last evaluation that was judged. */
  judged = -1;
  /** NaN: no evaluation was a number yet. */
  private best = NaN;
  private bestStep = 0;
  /** Evaluations since the best one. */
  private waited = 0;

  constructor(private readonly spec: EvaluationSpec) {}

  /** The number that it goes by: "loss", or a metric's name. */
  get chosenBy(): string {
    return this.spec.best_by ?? this.spec.metrics?.[0] ?? "loss";
  }

  get isFinished(): boolean {
    return this.waited >= (this.spec.patience ?? 0);
  }

  /** Take the evaluation after `step`. One that was judged before, or is no number, improves nothing. */
  judge(step: number, value: number | null): void {
    if (step === this.judged) return;
    this.judged = step;
    const { best_is, min_delta = 0 } = this.spec;
    const found = value ?? NaN;
    const isLowest = best_is ? best_is === "lowest" : LOWER_IS_BETTER.includes(this.chosenBy);
    const gain = isLowest ? this.best - found : found - this.best;
    if (Number.isFinite(found) && !(gain <= min_delta)) [this.best, this.bestStep, this.waited] = [found, step, 0];
    else this.waited += 1;
  }

  state(): Tensor {
    return Tensor.of("float64", [4], Float64Array.of(this.best, this.bestStep, this.waited, this.judged));
  }

  /** Take over what `state` gave; undefined stands for a training that begins. */
  loadState(state: Tensor | undefined): void {
    const kept = state === undefined ? [NaN, 0, 0, -1] : new Float64Array(state.bytes.slice().buffer);
    [this.best, this.bestStep, this.waited, this.judged] = kept;
  }
}
