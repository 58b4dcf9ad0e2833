/** The samples that a device trains on: pictures as bytes, or rows of numbers, each with its label. */

import { blake2b } from "@noble/hashes/blake2.js";

import { DataError } from "../errors.ts";
import { toHex } from "../protocol/hex.ts";
import { product, Tensor } from "../protocol/tensor.ts";
import type { Tensors } from "../storage/tensors.ts";
import type { Job, SampleSpec } from "./job.ts";
import { isPicture } from "./refusals.ts";

/** Of each label every fifth sample is held back, to see how good the model is on what it has not seen. */
const HELD_BACK = 5;
const MAX_BYTES = 512 << 20;
const WHITE = 255;

/** Samples as the page hands them over: pictures have bytes (channels, height, width), rows float32. */
export interface NewSamples {
  readonly inputs: Uint8Array | Float32Array;
  readonly labels: readonly number[];
}

export class DataSet {
  readonly isPictures: boolean;
  /** Numbers of one sample. */
  readonly size: number;
  private readonly input: SampleSpec;
  private readonly target: SampleSpec;
  private inputs: Uint8Array | Float32Array;
  private labels: number[] = [];

  constructor(private readonly job: Job) {
    [this.input] = job.signature.inputs;
    [this.target] = job.signature.targets;
    this.isPictures = isPicture(this.input);
    this.size = product(this.input.shape);
    this.inputs = this.none();
  }

  get count(): number {
    return this.labels.length;
  }

  /** The number of classes; null where labels are numbers of another kind. */
  get classes(): number | null {
    const [output] = this.job.signature.outputs;
    if (this.target.dtype === "int64") return output.shape[0] ?? null;
    return this.job.spec.loss.name === "bce_with_logits" && this.targetSize === 1 ? 2 : null;
  }

  /** The names of the classes, by the job's recipe; else their numbers. */
  get classNames(): string[] {
    const named = this.job.spec.data?.classes;
    return named ? [...named] : Array.from({ length: this.classes ?? 0 }, (_, number) => String(number));
  }

  /** Samples of each class. */
  get counts(): number[] {
    const counts = Array.from({ length: this.classes ?? 0 }, () => 0);
    for (const label of this.labels) counts[label] += 1;
    return counts;
  }

  private get targetSize(): number {
    return product(this.target.shape);
  }

  /** Throws DataError, and takes none of them, where one does not fit. */
  add({ inputs, labels }: NewSamples): void {
    if (this.isPictures !== inputs instanceof Uint8Array || inputs.length !== labels.length * this.size) {
      throw new DataError("the samples do not have the shape that the training wants");
    }
    if (inputs instanceof Float32Array && !inputs.every(Number.isFinite)) throw new DataError("a row has a value that is no number");
    const { classes } = this;
    for (const label of labels) {
      const fits = classes === null ? Number.isFinite(label) : Number.isInteger(label) && label >= 0 && label < classes;
      if (!fits) throw new DataError(`the label ${label} is none that the training knows`);
    }
    if (this.inputs.byteLength + inputs.byteLength > MAX_BYTES) throw new DataError("these are more samples than a page can keep");
    const all = new (inputs.constructor as Uint8ArrayConstructor)(this.inputs.length + inputs.length);
    all.set(this.inputs);
    all.set(inputs, this.inputs.length);
    this.inputs = all;
    this.labels.push(...labels);
  }

  clear(): void {
    this.inputs = this.none();
    this.labels = [];
  }

  private none(): Uint8Array | Float32Array {
    return this.isPictures ? new Uint8Array(0) : new Float32Array(0);
  }

  /** One sample as it was given, for a person to look at. */
  sample(index: number): { input: Uint8Array | Float32Array; label: number } {
    return { input: this.inputs.slice(index * this.size, (index + 1) * this.size), label: this.labels[index] };
  }

  /** The places of the samples to train on, and of those that are held back. */
  parts(): { train: number[]; test: number[] } {
    const seen = new Map<number, number>();
    const train: number[] = [];
    const test: number[] = [];
    this.labels.forEach((label, place) => {
      const kind = this.classes === null ? 0 : label;
      const before = seen.get(kind) ?? 0;
      seen.set(kind, before + 1);
      (before % HELD_BACK === HELD_BACK - 1 ? test : train).push(place);
    });
    return { train, test };
  }

  /** The job's inputs and targets of the samples at these places, batch first; `answer` gives the label to train on. */
  gather(places: readonly number[], answer = (label: number, _place: number): number => label): { inputs: Tensor; targets: Tensor } {
    const picked = this.isPictures ? new Uint8Array(places.length * this.size) : new Float32Array(places.length * this.size);
    places.forEach((place, at) => picked.set(this.inputs.subarray(place * this.size, (place + 1) * this.size), at * this.size));
    return { inputs: this.inputTensor(picked, places.length), targets: this.targetTensor(places.map((place) => answer(this.labels[place], place))) };
  }

  /** Samples as the model's input, by the job's recipe: as float32 from 0 to 1, less the mean, over the deviation. */
  inputTensor(samples: Uint8Array | Float32Array, count: number): Tensor {
    const shape = [count, ...this.input.shape];
    if (samples instanceof Float32Array) return Tensor.float32(shape, samples);
    if (this.input.dtype === "uint8") return Tensor.of("uint8", shape, samples);
    const { mean = [], std = [] } = this.job.spec.data ?? {};
    const plane = this.size / this.input.shape[0];
    const values = Float32Array.from(samples, (byte) => byte / WHITE);
    if (mean.length || std.length) {
      for (let at = 0; at < values.length; at++) {
        const channel = Math.floor(at / plane) % this.input.shape[0];
        const less = mean.length ? Math.fround(values[at] - Math.fround(mean[channel % mean.length])) : values[at];
        values[at] = std.length ? less / Math.fround(std[channel % std.length]) : less;
      }
    }
    return Tensor.float32(shape, values);
  }

  private targetTensor(labels: readonly number[]): Tensor {
    const shape = [labels.length, ...this.target.shape];
    if (this.target.dtype === "int64") return Tensor.of("int64", shape, BigInt64Array.from(labels, BigInt));
    return Tensor.float32(shape, Float32Array.from(labels.flatMap((label) => Array.from({ length: this.targetSize }, () => label))));
  }

  /** Tells whether it is the same data. */
  get fingerprint(): string {
    const { inputs, labels } = this.state();
    const hasher = blake2b.create({ dkLen: 32 });
    hasher.update(new TextEncoder().encode(`${this.count} ${inputs.dtype} ${this.size}`));
    return toHex(hasher.update(inputs.bytes).update(labels.bytes).digest());
  }

  /** The samples, to be kept. */
  state(): { inputs: Tensor; labels: Tensor } {
    const kind = this.isPictures ? "uint8" : "float32";
    return {
      inputs: Tensor.of(kind, [this.inputs.length], this.inputs),
      labels: Tensor.of("float64", [this.labels.length], Float64Array.from(this.labels)),
    };
  }

  /** Take over what `state` gave. Throws DataError where it is not of this job. */
  load({ inputs, labels }: Tensors): void {
    const numbers = new Float64Array(labels.bytes.slice().buffer);
    this.clear();
    this.add({ inputs: this.isPictures ? inputs.bytes : inputs.floats(), labels: [...numbers] });
  }
}
