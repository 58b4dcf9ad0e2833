/** The losses and evaluations so far: kept with each checkpoint, so that a curve goes on after the page was closed. */

import type { StateFolder } from "../storage/state_folder.ts";

const NAME = "history";

export interface Evaluated {
  readonly step: number;
  readonly samples: number;
  readonly loss: number | null;
  readonly accuracy: number | null;
  /** The metrics that the job names; null where one was not measured. */
  readonly metrics?: Readonly<Record<string, number | null>>;
}

interface Kept {
  readonly losses: (number | null)[];
  readonly evaluations: Evaluated[];
  readonly done: boolean;
}

export class History {
  private constructor(
    private readonly state: StateFolder,
    private kept: Kept,
  ) {}

  static async open(state: StateFolder): Promise<History> {
    return new History(state, (await state.readJson<Kept>(NAME)) ?? { losses: [], evaluations: [], done: false });
  }

  /** The loss of each step, from step 1; null where none was measured. */
  get losses(): readonly (number | null)[] {
    return this.kept.losses;
  }

  get evaluations(): readonly Evaluated[] {
    return this.kept.evaluations;
  }

  get done(): boolean {
    return this.kept.done;
  }

  /** The training goes on from the state after `step`. */
  rewind(step: number): void {
    const losses = this.kept.losses.slice(0, step);
    while (losses.length < step) losses.push(null);
    this.kept = { losses, evaluations: this.kept.evaluations.filter((each) => each.step <= step), done: false };
  }

  took(step: number, loss: number | null): void {
    while (this.kept.losses.length < step) this.kept.losses.push(null);
    this.kept.losses[step - 1] = loss;
  }

  evaluated(found: Evaluated): void {
    this.kept = { ...this.kept, evaluations: [...this.kept.evaluations.filter(({ step }) => step !== found.step), found] };
  }

  async finish(): Promise<void> {
    this.kept = { ...this.kept, done: true };
    await this.save();
  }

  async save(): Promise<void> {
    await this.state.writeJson(NAME, this.kept);
  }
}
