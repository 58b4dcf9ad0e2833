/** The place of a device in a fleet's rounds, as its checkpoints keep it: `device_agent/rounds/place.py`. */

import { Tensor } from "../protocol/tensor.ts";

export class RoundPlace {
  constructor(
    /** The number of the record that it trains for; 0: no round has begun. */
    readonly round = 0,
    /** The record that began the round: the one before, but where a body is shared and rounds have windows. */
    readonly opened = 0,
    /** The number of devices drawn for the round. */
    readonly drawn = 0,
    /** Samples that it has trained on since it went on from a mean. */
    readonly samples = 0,
    /** Those of the whole round. */
    readonly roundSamples = 0,
    /** Steps that it has taken in the round. */
    readonly steps = 0,
  ) {}

  /** The place after a step on so many samples; one without effect counts as a step, too. */
  trained(samples: number): RoundPlace {
    return new RoundPlace(this.round, this.opened, this.drawn, this.samples + samples, this.roundSamples + samples, this.steps + 1);
  }

  /** The place after it has gone on from record `round`; `kept`: in the middle of its round. */
  goneOn(round: number, opened: number, drawn: number, kept: boolean): RoundPlace {
    if (kept && opened === this.opened) return new RoundPlace(round + 1, this.opened, drawn, 0, this.roundSamples, this.steps);
    return new RoundPlace(round + 1, opened, drawn);
  }

  asTensor(): Tensor {
    const { round, opened, drawn, samples, roundSamples, steps } = this;
    return Tensor.of("int64", [6], BigInt64Array.from([round, opened, drawn, samples, roundSamples, steps], BigInt));
  }

  static of(tensor: Tensor | undefined): RoundPlace {
    if (tensor === undefined) return new RoundPlace();
    return new RoundPlace(...Array.from(new BigInt64Array(tensor.bytes.slice().buffer), Number));
  }
}
