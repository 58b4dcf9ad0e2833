/** The section `[fleet]` of a job, with what follows from it: `spliteasy/job/spec/fleet.py`. */

import type { Spec } from "../training/job.ts";

const ROUND_SAMPLES = 2 ** 20;
const SUM_BITS = 62;
const RANGE_BITS = 16;

export class Fleet {
  readonly mode: string;
  readonly ends: string;
  readonly optimizer: string;
  /** Batch norm, with its weights and running statistics, is averaged as all else. */
  readonly averagesNorm: boolean;
  private readonly its: NonNullable<Spec["fleet"]>;

  constructor(private readonly spec: Spec) {
    const its = (this.its = spec.fleet ?? {});
    this.mode = its.mode ?? "personal";
    const relay = this.mode === "relay";
    this.ends = its.ends ?? (relay ? "relay" : "average");
    this.optimizer = its.optimizer ?? (relay ? "average" : "reset");
    this.averagesNorm = (its.norm ?? "average") === "average";
  }

  get hasRounds(): boolean {
    return this.mode !== "personal";
  }

  /** A round is the turn of one device, whose work the next one goes on with. */
  get handsOver(): boolean {
    return this.mode === "relay";
  }

  /** There is one body, of which each step takes the gradients of a window's devices. */
  get sharesBody(): boolean {
    return this.mode === "shared";
  }

  /** Head and tail leave the devices, to be averaged or handed over. */
  get endsLeave(): boolean {
    return this.hasRounds && this.ends !== "own";
  }

  /** They leave so that only devices can read them. */
  get seals(): boolean {
    return this.endsLeave && this.its.aggregate !== "plain";
  }

  /** What is sealed is added up: as whole numbers. */
  get sealsSums(): boolean {
    return this.seals && !this.handsOver;
  }

  /** What a device counts for that has trained on so many samples. */
  weightOf(samples: number): number {
    return (this.its.weights ?? "samples") === "samples" && !this.handsOver ? samples : Number(samples > 0);
  }

  /** How many bits behind the point a sealed round of so many devices has. */
  fractionBits(devices: number): number {
    return SUM_BITS - RANGE_BITS - bits(this.mostWeight - 1) - bits(Math.max(devices, 1) - 1);
  }

  /** Steps of a device between two means, at most all that it takes; 0: there are no rounds. */
  roundLength(stepsPerEpoch: number, totalSteps: number): number {
    if (!this.hasRounds) return 0;
    const { round_steps: steps, round_epochs: epochs } = this.its;
    return Math.min(steps ?? (epochs ?? 1) * stepsPerEpoch, totalSteps);
  }

  private get mostWeight(): number {
    if (this.its.weights === "equal") return 1;
    const { max_samples: most, round_steps: steps } = this.its;
    return most ?? (typeof steps === "number" ? steps * this.spec.batch_size : ROUND_SAMPLES);
  }
}

function bits(value: number): number {
  return value > 0 ? value.toString(2).length : 0;
}
