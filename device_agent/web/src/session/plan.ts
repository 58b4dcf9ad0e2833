/** The plan of a device's session, from its job, its data and the agent's settings: `device_agent/session/plan.py`. */

export interface Settings {
  readonly session: string;
  readonly digest: string;
  /** Steps in all: those that train, and those that go on from a mean. */
  readonly total_steps: number;
  readonly checkpoint_every: number;
  /** Steps that train between two evaluations; 0: only at the end. */
  readonly eval_every: number;
  /** Steps that train between two means of a fleet; 0: there are no rounds. */
  readonly round_steps: number;
  /** Means of a round: one if not given, or as many as a round has windows of a shared body. */
  readonly means_per_round?: number;
  /** Batches of one evaluation; 0: no test data. */
  readonly eval_batches: number;
  readonly has_tail: boolean;
  readonly micro_batches: number;
  /** An evaluation may end the training. It is then judged before the checkpoint of its step is written. */
  readonly stops_early: boolean;
  /** Go on even if the store knows a newer attempt of this device. */
  readonly takeover: boolean;
  /** Begin at step 0, whatever the store has. */
  readonly restart: boolean;
  /** The version that the checkpoints were trained on before `digest` went on from them. */
  readonly previous: string | null;
  readonly reply_timeout_s: number;
  readonly stop_grace_s: number;
  readonly retry_s: number;
  /** Requests with more bytes are asked about first where an agent before this one may have begun the step. */
  readonly ask_above_bytes: number;
  readonly agent: string | null;
}

export class SessionPlan {
  constructor(readonly of: Settings) {}

  /** Whether `step` trains nothing, and goes on from the mean of a round instead; the first one does. */
  isRoundEnd(step: number): boolean {
    return this.of.round_steps > 0 && step % (this.of.round_steps + 1) === 1;
  }

  /** Whether a checkpoint is written after `step`: now and then, and wherever a mean was gone on from. */
  keeps(step: number): boolean {
    return step % this.of.checkpoint_every === 0 || this.isRoundEnd(step);
  }

  /** How many of the steps up to `step` train. */
  trained(step: number): number {
    const period = this.of.round_steps + 1;
    return this.of.round_steps ? step - Math.floor((step + period - 1) / period) : step;
  }

  /** Whether an evaluation is due after `step`: in a fleet, of a common model only. */
  evaluatesAfter(step: number): boolean {
    const { total_steps, eval_every, round_steps } = this.of;
    if (step >= total_steps) return true;
    const trained = this.trained(step);
    if (!eval_every || !trained) return false;
    if (!round_steps) return step % eval_every === 0;
    const whole = round_steps * (this.of.means_per_round ?? 1);
    const endsRound = this.isRoundEnd(step) && trained % whole === 0;
    return endsRound && Math.floor(trained / eval_every) > Math.floor((trained - whole) / eval_every);
  }
}

/** Samples of each micro-batch: as equal as can be, the larger ones first, none empty. */
export function microSizes(samples: number, microBatches: number): number[] {
  const count = Math.min(samples, microBatches);
  const least = Math.floor(samples / count);
  return Array.from({ length: count }, (_, at) => least + (at < samples % count ? 1 : 0));
}
