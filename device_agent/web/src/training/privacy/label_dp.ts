/** Randomized response on class labels, once a sample: `spliteasy/privacy/defences/label_dp.py`. */

import { DataError } from "../../errors.ts";
import { unit, type Key } from "../../random/index.ts";

export class RandomizedResponse {
  private readonly kept: number;

  /** `key`: of this data set and this ε, and of no job: another would be another answer. */
  constructor(
    epsilon: number,
    private readonly classes: number,
    private readonly key: Key,
  ) {
    this.kept = 1 / (1 + (classes - 1) * Math.exp(-epsilon));
  }

  /** The label to train on in place of that of the sample at `place`. Throws DataError for a label that is no class. */
  answer(label: number, place: number): number {
    if (!Number.isInteger(label) || label < 0 || label >= this.classes) {
      throw new DataError(`the label ${label} is none of the training's ${this.classes} classes`);
    }
    const [coin, other] = unit(2, 53, this.key.at(place));
    return coin < this.kept ? label : (label + 1 + Math.floor(other * (this.classes - 1))) % this.classes;
  }
}

/** A number as Python writes it, which is part of the key of the answers. */
export function pythonNumber(value: number): string {
  if (Number.isInteger(value) && Math.abs(value) < 1e16) return `${value}.0`;
  if (Math.abs(value) < 1e-4) return value.toExponential().replace(/e-(\d)$/, "e-0$1");
  return String(value);
}
