/** The order in which samples are used: `device_agent/training/data.py`. A batch is a function of key and step. */

import { DataError } from "../errors.ts";
import type { Tensor } from "../protocol/tensor.ts";
import { permutation, type Key } from "../random/index.ts";
import { microSizes } from "../session/plan.ts";
import type { DataSet } from "./data_set.ts";
import type { Job } from "./job.ts";
import type { RandomizedResponse } from "./privacy/label_dp.ts";

export interface Batch {
  readonly inputs: Tensor;
  readonly targets: Tensor;
}

/** The training batches of a device: step 1 is the first of epoch 0. */
export class BatchOrder {
  readonly stepsPerEpoch: number;
  readonly totalSteps: number;
  private readonly places: readonly number[];
  private readonly batchSize: number;
  private order: { epoch: number; places: number[] } = { epoch: -1, places: [] };

  /** `key` is the device's for the job; `answers` stand in for the labels, where there are some. Throws DataError where there are too few samples. */
  constructor(
    private readonly data: DataSet,
    { spec, signature }: Job,
    private readonly key: Key,
    private readonly answers: RandomizedResponse | null = null,
  ) {
    this.places = data.parts().train;
    this.batchSize = spec.batch_size;
    const rest = this.places.length % spec.batch_size;
    const whole = Math.floor(this.places.length / spec.batch_size);
    this.stepsPerEpoch = spec.drop_last || !rest ? whole : whole + 1;
    if (!this.stepsPerEpoch) {
      const needed = spec.drop_last ? spec.batch_size : 1;
      throw new DataError(`there are ${this.places.length} samples to train on, and the training needs ${needed}`, "add more, and try again");
    }
    const least = Math.min(...microSizes(rest || spec.batch_size, spec.micro_batches ?? 1));
    if (!spec.drop_last && least < signature.least_samples) {
      throw new DataError(`with ${data.count} samples the last batch would have a single one, which the training can't use`, "add or remove one sample");
    }
    const batches = this.stepsPerEpoch * spec.epochs;
    this.totalSteps = batches - (batches % (spec.accumulate ?? 1));
    if (!this.totalSteps) {
      throw new DataError(`there are ${batches} batches in all, and the training adds up ${spec.accumulate} before it learns from them`, "add more samples, and try again");
    }
  }

  get samples(): number {
    return this.places.length;
  }

  /** The epoch (0 is the first) that `step` belongs to. */
  epoch(step: number): number {
    return Math.floor((step - 1) / this.stepsPerEpoch);
  }

  batch(step: number): Batch {
    const epoch = this.epoch(step);
    if (this.order.epoch !== epoch) this.order = { epoch, places: shuffled(this.places, this.key.at("order").at(epoch)) };
    const start = ((step - 1) % this.stepsPerEpoch) * this.batchSize;
    const { answers } = this;
    const answer = answers === null ? undefined : (label: number, place: number): number => answers.answer(label, place);
    return this.data.gather(this.order.places.slice(start, start + this.batchSize), answer);
  }
}

/** What is held back, in batches, in another order at each evaluation. */
export class EvaluationBatches {
  readonly count: number;
  private readonly places: readonly number[];
  private readonly size: number;

  constructor(
    private readonly data: DataSet,
    { spec }: Job,
    private readonly key: Key,
  ) {
    this.places = data.parts().test;
    this.size = spec.evaluation?.batch_size ?? 256;
    this.count = Math.ceil(this.places.length / this.size);
  }

  batch(index: number, step: number): Batch {
    const order = shuffled(this.places, this.key.at("evaluation").at(step));
    return this.data.gather(order.slice(index * this.size, (index + 1) * this.size));
  }
}

function shuffled(places: readonly number[], key: Key): number[] {
  return Array.from(permutation(places.length, key), (at) => places[at]);
}
